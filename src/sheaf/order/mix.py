"""Interleave the sources by weight, seekable: which draw of which source stands at a given slot of the sequence.

Source s holds samples of m_s tokens on average and shall give a share q_s of the tokens, so it is drawn at the rate
r_s = q_s / m_s per unit of time; its draw k (from 0) is *due* at (k + ½) / r_s. The sequence is all draws of all
sources by due time, ties by source, then by draw. It is a merge of arithmetic progressions, as in earliest-deadline
scheduling.

**How far a prefix can be off.** By time t source s had c_s = floor(t·r_s + ½) draws, so c_s = t·r_s + e_s with |e_s|
<= ½; inside a group of ties the same bound holds, since c_s is then one of the two integers at distance ½. With W = Σ
c_j·m_j, the tokens of the prefix at mean sample size, and Σ q = 1:
    c_s·m_s − q_s·W = e_s·m_s·(1 − q_s) − q_s·Σ_{j≠s} e_j·m_j,
whose absolute value is at most ½·(m_s·(1 − q_s) + q_s·Σ_{j≠s} m_j): about half a sample of each source, at every
prefix, however long. A source with a cap (`max_draws`) simply has no draw after it; the others keep their times,
hence their proportions, and the bound goes on among them.

**Exactness.** A due time is one correctly rounded float64 division of exact numbers, the same on every machine; the
order compares these floats, and counting draws up to a time compares them too (an estimate corrected by comparison),
so two ranges of slots never disagree about where they meet. Draws are below 2^51, where k + ½ is exact.

Cost of `draws`: a bisection over the bits of a float (at most 63 steps) for either end, O(sources) each, and a sort
of the range itself; nothing depends on where the range lies.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sheaf.errors import DataRefused, RecipeError
from sheaf.kernel import kernel
from sheaf.recipe import MixtureEntry

ENDLESS = -1
LARGEST_DRAW = 2**51
_SLOWEST = 1e-200  # relative to the fastest source: due times stay finite, and nothing that slow is met anyway


@dataclass(frozen=True, eq=False)
class Mixture:
    """Token shares and sizes of the sources, in the order of the corpus' source names (legend: s = sources).

    share_s: float64, relative (they need not sum to 1), 0 = never drawn. tokens_s, samples_s: int64, of one epoch; a
    source without samples is never drawn. max_draws_s: int64, draws after which a source is spent, or ENDLESS.
    """

    share_s: NDArray[np.float64]
    tokens_s: NDArray[np.int64]
    samples_s: NDArray[np.int64]
    max_draws_s: NDArray[np.int64]

    @cached_property
    def total(self) -> int | None:
        """Slots until every source is spent; None if that never happens."""
        drawn = (self.share_s > 0) & (self.samples_s > 0)
        if (self.max_draws_s[drawn] == ENDLESS).any():
            return None
        return int(self.max_draws_s[drawn].sum())

    def draws(self, slot_from: int, slot_to: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The source, int32 (slots,), and that source's draw number, int64 (slots,), of slots [slot_from, slot_to)."""
        low_s, high_s = self.counts(slot_from), self.counts(slot_to)
        source, draw, due = _enumerate(low_s, high_s, self._rate_s)
        order = np.argsort(due, kind="stable")  # stable: ties stay by source, then by draw
        return source[order], draw[order]

    def counts(self, slot: int) -> NDArray[np.int64]:
        """How many draws of each source are among the first `slot` slots: int64 (sources,), their sum is `slot`."""
        end = LARGEST_DRAW if self.total is None else self.total
        if not 0 <= slot <= end:
            raise IndexError(f"slot {slot} lies outside the order, which has {end} slots")
        return _counts(slot, self._rate_s, self._cap_s)

    def slots(self, source: NDArray[np.int32], draw: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inverse of `draws`: the slot of each (source, draw). The draws must exist (below the source's cap)."""
        return _slots(source.astype(np.int64), draw.astype(np.int64), self._rate_s, self._cap_s)

    @cached_property
    def _rate_s(self) -> NDArray[np.float64]:
        """Draws per unit of time, the fastest source 1. Only ratios matter."""
        rate_s = np.zeros(len(self.share_s))
        on = (self.share_s > 0) & (self.samples_s > 0)
        if on.any():
            # Dividing by the largest first keeps weights like 1e300 finite.
            share = self.share_s[on] / self.share_s[on].max()
            rate = share * (self.samples_s[on] / self.tokens_s[on])
            rate_s[on] = np.maximum(rate / rate.max(), _SLOWEST)
        return rate_s

    @cached_property
    def _cap_s(self) -> NDArray[np.int64]:
        cap_s = np.where(self.max_draws_s == ENDLESS, LARGEST_DRAW, self.max_draws_s)
        return np.where(self._rate_s > 0, cap_s, 0).astype(np.int64)


def resolve_mixture(
    source_names: Sequence[str],
    mixture: Mapping[str, MixtureEntry],
    tokens_s: NDArray[np.int64],
    samples_s: NDArray[np.int64],
) -> Mixture:
    """What the recipe's `mixture:` means for these sources.

    Without one, every source in proportion to its tokens: all finish an epoch together. With one, token shares are the
    weights, and a source that it does not list has weight 1. Sources without samples take no part; max_epochs caps a
    source at ceil(max_epochs · samples) draws. Raises RecipeError for a name that is no source, DataRefused if nothing
    is left to draw from.
    """
    for name in mixture:
        if name not in source_names:
            near = difflib.get_close_matches(name, source_names, 1)
            raise RecipeError(
                f"the mixture names a source that does not exist: '{name}'",
                why=f"the sources are {', '.join(source_names)}",
                fix=f"write '{near[0]}'" if near else "name one of them, or add the source",
            )
    entries = [mixture.get(name, MixtureEntry()) for name in source_names]
    share_s = np.array([e.weight for e in entries], np.float64) if mixture else tokens_s.astype(np.float64)
    share_s = np.where(samples_s > 0, share_s, 0.0)
    if not (share_s > 0).any():
        raise DataRefused(
            "the mixture has nothing to draw from",
            why="every source is empty or has weight 0",
            fix="give a source that holds documents a weight above 0",
        )
    caps = [_cap(entry.max_epochs, int(n)) for entry, n in zip(entries, samples_s, strict=True)]
    return Mixture(share_s, tokens_s.astype(np.int64), samples_s.astype(np.int64), np.array(caps, np.int64))


def _cap(max_epochs: float | None, samples: int) -> int:
    if max_epochs is None or not math.isfinite(max_epochs):
        return ENDLESS
    # As the number is written: 0.07 epochs of 100 samples are 7, not ceil(7.000000000000001).
    return min(math.ceil(Fraction(repr(float(max_epochs))) * samples), LARGEST_DRAW)


@kernel
def _due(draw: int, rate: float) -> float:
    return (draw + 0.5) / rate


@kernel
def _drawn(time: float, rate: float, cap: int, strictly: bool) -> int:
    """How many draws are due at or before `time` (strictly: before it)."""
    if cap == 0:
        return 0
    estimate = time * rate + 0.5
    k = cap if estimate >= cap else int(estimate)
    if strictly:
        while k > 0 and _due(k - 1, rate) >= time:
            k -= 1
        while k < cap and _due(k, rate) < time:
            k += 1
    else:
        while k > 0 and _due(k - 1, rate) > time:
            k -= 1
        while k < cap and _due(k, rate) <= time:
            k += 1
    return k


@kernel
def _counts(slot: int, rate_s: NDArray[np.float64], cap_s: NDArray[np.int64]) -> NDArray[np.int64]:
    count_s = np.zeros(len(rate_s), np.int64)
    if slot == 0:
        return count_s
    # The earliest time by which `slot` draws are due. Non-negative floats sort as their bits do, so halving the bits
    # ends at that very float in 63 steps, whatever its magnitude.
    bits = np.empty(1, np.int64)
    time = bits.view(np.float64)
    low, high = np.int64(0), np.int64(0x7FEFFFFFFFFFFFFF)  # 0.0 and the largest finite float
    while low < high:
        middle = low + (high - low) // 2
        bits[0] = middle
        total = 0
        for s in range(len(rate_s)):
            total += min(_drawn(time[0], rate_s[s], cap_s[s], False), slot)
        if total >= slot:
            high = middle
        else:
            low = middle + 1
    bits[0] = low
    left = slot
    for s in range(len(rate_s)):
        count_s[s] = _drawn(time[0], rate_s[s], cap_s[s], True)
        left -= count_s[s]
    for s in range(len(rate_s)):  # the rest are ties at this very time, by source
        take = min(left, _drawn(time[0], rate_s[s], cap_s[s], False) - count_s[s])
        count_s[s] += take
        left -= take
    return count_s


@kernel
def _enumerate(
    low_s: NDArray[np.int64], high_s: NDArray[np.int64], rate_s: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]:
    n = np.sum(high_s - low_s)
    source, draw, due = np.empty(n, np.int32), np.empty(n, np.int64), np.empty(n, np.float64)
    i = 0
    for s in range(len(rate_s)):
        for k in range(low_s[s], high_s[s]):
            source[i], draw[i], due[i] = s, k, _due(k, rate_s[s])
            i += 1
    return source, draw, due


@kernel
def _slots(
    source: NDArray[np.int64], draw: NDArray[np.int64], rate_s: NDArray[np.float64], cap_s: NDArray[np.int64]
) -> NDArray[np.int64]:
    slot = np.empty(len(source), np.int64)
    for i in range(len(source)):
        time = _due(draw[i], rate_s[source[i]])
        slot[i] = draw[i]
        for s in range(len(rate_s)):
            if s != source[i]:
                slot[i] += _drawn(time, rate_s[s], cap_s[s], s > source[i])
    return slot
