"""Interleave sources at constant rates, seekable: which draw of which source stands at a given slot.

Source s is drawn at the rate r_s per unit of time, and h_s of a draw is missing until its first one: its draw k (from
0) is *due* at (k + h_s) / r_s. The sequence is all draws of all sources by due time, ties by source, then by draw. It
is a merge of arithmetic progressions, as in earliest-deadline scheduling. With h = ½, by time t source s had c_s =
floor(t·r_s + ½) draws: t·r_s rounded, so never off by more than half a draw; inside a group of ties c_s is one of the
two integers at distance ½.

**Exactness.** A due time is one sum of a whole number and a number in [0, 1], and one division, both correctly rounded
in float64: the same on every machine, and rising in k. The order compares these floats, and counting draws up to a
time compares them too (an estimate corrected by comparison), so two ranges of slots never disagree about where they
meet. Draws are below 2^51, where k + ½ is exact.

Cost of `draws`: a bisection over the bits of a float (at most 63 steps) for either end, O(sources) each, and a sort
of the range itself; nothing depends on where the range lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sheaf.kernel import kernel

ENDLESS = -1
LARGEST_DRAW = 2**51


@dataclass(frozen=True, eq=False)
class Stretch:
    """Slots of constant rates, counted from 0 (s = sources); draws count from 0 too.

    rate_s: float64, draws per unit of time, the fastest 1; 0: never drawn. head_s: float64 in [0, 1], the part of a
    draw that is missing until the first one. left_s: int64, draws after which a source is spent, or ENDLESS.
    """

    rate_s: NDArray[np.float64]
    head_s: NDArray[np.float64]
    left_s: NDArray[np.int64]

    @cached_property
    def total(self) -> int | None:
        """Slots until every source is spent; None if that never happens."""
        drawn = self.rate_s > 0
        return None if (self.left_s[drawn] == ENDLESS).any() else int(self.left_s[drawn].sum())

    def counts(self, slot: int) -> NDArray[np.int64]:
        """How many draws of each source are among the first `slot` slots: int64 (sources,), their sum is `slot`."""
        return _counts(slot, self._time(slot), self.rate_s, self.head_s, self._cap_s)

    def draws(self, slot_from: int, slot_to: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The source, int32 (slots,), and that source's draw number, int64 (slots,), of slots [slot_from, slot_to)."""
        low_s, high_s = self.counts(slot_from), self.counts(slot_to)
        source, draw, due = _enumerate(low_s, high_s, self.rate_s, self.head_s)
        order = np.argsort(due, kind="stable")  # stable: ties stay by source, then by draw
        return source[order], draw[order]

    def slots(self, source: NDArray[np.int64], draw: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inverse of `draws`: the slot of each (source, draw). The draws must exist."""
        return _slots(source, draw, self.rate_s, self.head_s, self._cap_s)

    def heads_after(self, slot: int) -> NDArray[np.float64]:
        """The heads of a stretch that goes on after `slot` slots of this one: what a source is owed is not forgotten.

        After c draws by time t, c + h − t·r of a draw is missing: computed exactly, then rounded.
        """
        time, count_s = Fraction(self._time(slot)), self.counts(slot)
        exact = [
            int(count) + Fraction(float(head)) - time * Fraction(float(rate))
            for count, head, rate in zip(count_s, self.head_s, self.rate_s, strict=True)
        ]
        return np.array([float(min(max(x, Fraction(0)), Fraction(1))) for x in exact])

    def _time(self, slot: int) -> float:
        return float(_time(slot, self.rate_s, self.head_s, self._cap_s))

    @cached_property
    def _cap_s(self) -> NDArray[np.int64]:
        cap_s = np.where(self.left_s == ENDLESS, LARGEST_DRAW, self.left_s)
        return np.where(self.rate_s > 0, cap_s, 0).astype(np.int64)


@kernel
def _due(draw: int, rate: float, head: float) -> float:
    return (draw + head) / rate


@kernel
def _drawn(time: float, rate: float, head: float, cap: int, strictly: bool) -> int:
    """How many draws are due at or before `time` (strictly: before it)."""
    if cap == 0:
        return 0
    estimate = time * rate + (1.0 - head)
    k = cap if estimate >= cap else int(estimate)
    if strictly:
        while k > 0 and _due(k - 1, rate, head) >= time:
            k -= 1
        while k < cap and _due(k, rate, head) < time:
            k += 1
    else:
        while k > 0 and _due(k - 1, rate, head) > time:
            k -= 1
        while k < cap and _due(k, rate, head) <= time:
            k += 1
    return k


@kernel
def _time(slot: int, rate_s: NDArray[np.float64], head_s: NDArray[np.float64], cap_s: NDArray[np.int64]) -> float:
    """The earliest time by which `slot` draws are due; 0 for none."""
    # Non-negative floats sort as their bits do, so halving the bits ends at that very float in 63 steps, whatever its
    # magnitude.
    bits = np.empty(1, np.int64)
    time = bits.view(np.float64)
    low, high = np.int64(0), np.int64(0x7FEFFFFFFFFFFFFF)  # 0.0 and the largest finite float
    while low < high and slot > 0:
        middle = low + (high - low) // 2
        bits[0] = middle
        total = 0
        for s in range(len(rate_s)):
            total += min(_drawn(time[0], rate_s[s], head_s[s], cap_s[s], False), slot)
        if total >= slot:
            high = middle
        else:
            low = middle + 1
    bits[0] = low
    return time[0]


@kernel
def _counts(
    slot: int, time: float, rate_s: NDArray[np.float64], head_s: NDArray[np.float64], cap_s: NDArray[np.int64]
) -> NDArray[np.int64]:
    count_s = np.zeros(len(rate_s), np.int64)
    left = slot
    for s in range(len(rate_s)):
        count_s[s] = _drawn(time, rate_s[s], head_s[s], cap_s[s], True)
        left -= count_s[s]
    for s in range(len(rate_s)):  # the rest are ties at this very time, by source
        take = min(left, _drawn(time, rate_s[s], head_s[s], cap_s[s], False) - count_s[s])
        count_s[s] += take
        left -= take
    return count_s


@kernel
def _enumerate(
    low_s: NDArray[np.int64], high_s: NDArray[np.int64], rate_s: NDArray[np.float64], head_s: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]:
    n = np.sum(high_s - low_s)
    source, draw, due = np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, np.float64)
    i = 0
    for s in range(len(rate_s)):
        for k in range(low_s[s], high_s[s]):
            source[i], draw[i], due[i] = s, k, _due(k, rate_s[s], head_s[s])
            i += 1
    return source, draw, due


@kernel
def _slots(
    source: NDArray[np.int64],
    draw: NDArray[np.int64],
    rate_s: NDArray[np.float64],
    head_s: NDArray[np.float64],
    cap_s: NDArray[np.int64],
) -> NDArray[np.int64]:
    slot = np.empty(len(source), np.int64)
    for i in range(len(source)):
        time = _due(draw[i], rate_s[source[i]], head_s[source[i]])
        slot[i] = draw[i]
        for s in range(len(rate_s)):
            if s != source[i]:
                slot[i] += _drawn(time, rate_s[s], head_s[s], cap_s[s], s > source[i])
    return slot
