"""Mix the sources by weight, seekable, with weights that may change: which draw of which source stands at a given slot.

Source s holds samples of m_s tokens on average and shall give a share q_s of the tokens, so it is drawn at the rate
r_s ∝ q_s / m_s. While the weights stay, `interleave` puts the draws in order. Where they change (at a slot that the
recipe names as a step), the rates change, and all else goes on: each source keeps its number of draws, hence its
epoch and its cap, and the part of a draw that it is owed. So no sample is repeated or left out because weights
changed, and a source of little weight is not forgotten however often they do.

**Spent sources.** A source with a cap (`max_draws`) has no draw after it; the others go on, in proportion to their
weights. Where all sources that have a weight are spent, the sequence ends, whatever a later change would bring.

**How far a prefix can be off.** While no source is spent, c_s = x_s + e_s with |e_s| <= ½, where x_s grows at the rate
of the time: the rounding is of the whole past, not of the stretch. With W_i = Σ_j c_j·m_j over stretch i, its tokens at
mean sample size, and q_is its shares (Σ_s q_is = 1), summing by parts over the stretches 1…P gives
    |c_s·m_s − Σ_i q_is·W_i| <= ½·(m_s·(1 − q_Ps) + q_Ps·Σ_{j≠s} m_j) + ½·Σ_{i<P} |q_is − q_(i+1)s|·Σ_j m_j:
about half a sample of each source, at every prefix, however long; a change of a share by δ adds δ/2 of one.

Cost: a change costs one bisection when an order is made; nothing depends on where a range of slots lies.
"""

from __future__ import annotations

import difflib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sheaf.errors import DataRefused, RecipeError
from sheaf.order.interleave import ENDLESS, LARGEST_DRAW, Stretch
from sheaf.recipe import Change, MixtureEntry

_SLOWEST = 1e-200  # relative to the fastest source: due times stay finite, and nothing that slow is met anyway


@dataclass(frozen=True, eq=False)
class Mixture:
    """Token shares and sizes of the sources, in the order of the corpus' source names (legend: s = sources).

    share_s: float64, relative (they need not sum to 1), 0 = never drawn. tokens_s, samples_s: int64, of one epoch; a
    source without samples is never drawn. max_draws_s: int64, draws after which a source is spent, or ENDLESS.
    changes: (slot from which on, shares), the slots rising and above 0.
    """

    share_s: NDArray[np.float64]
    tokens_s: NDArray[np.int64]
    samples_s: NDArray[np.int64]
    max_draws_s: NDArray[np.int64]
    changes: tuple[tuple[int, NDArray[np.float64]], ...] = ()

    @cached_property
    def total(self) -> int | None:
        """Slots until no source that has a weight has a draw; None if that never happens."""
        last = self._parts[-1]
        return None if last.stretch.total is None else last.first_slot + last.stretch.total

    @cached_property
    def ever_drawn_s(self) -> NDArray[np.bool_]:
        """The sources that have a weight at some slot of the sequence."""
        return np.any([part.stretch.rate_s > 0 for part in self._parts], axis=0)

    def draws(self, slot_from: int, slot_to: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The source, int32 (slots,), and that source's draw number, int64 (slots,), of slots [slot_from, slot_to)."""
        self._check(slot_from, slot_to)
        found: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []
        for number in range(self._part_at(slot_from), self._part_at(max(slot_from, slot_to - 1)) + 1):
            part = self._parts[number]
            end = slot_to if number + 1 == len(self._parts) else min(slot_to, self._parts[number + 1].first_slot)
            source, draw = part.stretch.draws(max(slot_from, part.first_slot) - part.first_slot, end - part.first_slot)
            found.append((source, draw + part.drawn_s[source]))
        if len(found) == 1:
            return found[0]
        return np.concatenate([source for source, _ in found]), np.concatenate([draw for _, draw in found])

    def counts(self, slot: int) -> NDArray[np.int64]:
        """How many draws of each source are among the first `slot` slots: int64 (sources,), their sum is `slot`."""
        self._check(slot, slot)
        part = self._parts[self._part_at(slot)]
        return part.drawn_s + part.stretch.counts(slot - part.first_slot)

    def slots(self, source: NDArray[np.int32], draw: NDArray[np.int64]) -> NDArray[np.int64]:
        """The inverse of `draws`: the slot of each (source, draw). The draws must exist (below the source's cap)."""
        slot = np.empty(len(source), np.int64)
        number = sum((part.drawn_s[source] <= draw for part in self._parts[1:]), np.zeros(len(source), np.int64))
        for p in np.unique(number).tolist():
            part, at = self._parts[p], np.flatnonzero(number == p)
            mine = source[at].astype(np.int64)
            slot[at] = part.first_slot + part.stretch.slots(mine, draw[at].astype(np.int64) - part.drawn_s[mine])
        return slot

    def shares_at(self, slot: int) -> NDArray[np.float64]:
        """The shares asked for at a slot: float64 (sources,), their sum is 1."""
        number = self._part_at(slot)
        share_s = self._asked[number]
        return share_s / share_s.sum()

    def asked_tokens(self, slot: int) -> NDArray[np.float64]:
        """What of the tokens of the first `slot` slots each source should have given, by the weights in force then:
        float64 (sources,), at the mean size of a source's samples. A spent source's part stays asked for."""
        mean_s = self.tokens_s / np.maximum(self.samples_s, 1)
        asked_s = np.zeros(len(mean_s))
        for number in range(self._part_at(slot) + 1):
            part = self._parts[number]
            last = number + 1 == len(self._parts) or self._parts[number + 1].first_slot > slot
            drawn_s = (self.counts(slot) if last else self._parts[number + 1].drawn_s) - part.drawn_s
            asked_s += self.shares_at(part.first_slot) * (drawn_s @ mean_s)
        return asked_s

    def _check(self, slot_from: int, slot_to: int) -> None:
        end = LARGEST_DRAW if self.total is None else self.total
        if slot_from < 0 or slot_to > end:
            outside = slot_from if slot_from < 0 else slot_to
            raise IndexError(f"slot {outside} lies outside the order, which has {end} slots")

    def _part_at(self, slot: int) -> int:
        return bisect_right(self._first_slots, slot) - 1

    @cached_property
    def _asked(self) -> list[NDArray[np.float64]]:
        """By part: the shares, scaled so that their sum is finite, and none that has a weight is 0; of sources without
        samples 0."""
        shares = [self.share_s, *(share_s for _, share_s in self.changes)]
        on_s = self.samples_s > 0
        least = np.finfo(np.float64).tiny
        kept = (np.where(on_s & (share_s > 0), share_s, 0.0) for share_s in shares)
        scaled = (share_s / max(share_s.max(initial=0.0), least) for share_s in kept)
        return [
            np.where(on_s & (given_s > 0), np.maximum(share_s, least), 0.0)
            for given_s, share_s in zip(shares, scaled, strict=True)
        ]

    @cached_property
    def _first_slots(self) -> list[int]:
        return [part.first_slot for part in self._parts]

    @cached_property
    def _parts(self) -> list[_Part]:
        firsts = [0, *(slot for slot, _ in self.changes)]
        drawn_s, head_s = np.zeros(len(self.share_s), np.int64), np.full(len(self.share_s), 0.5)
        parts: list[_Part] = []
        for number, first in enumerate(firsts):
            left_s = np.where(self.max_draws_s == ENDLESS, ENDLESS, self.max_draws_s - drawn_s)
            stretch = Stretch(self._rates(self._asked[number]), head_s, left_s)
            parts.append(_Part(first, drawn_s, stretch))
            slots = None if number + 1 == len(firsts) else firsts[number + 1] - first
            if slots is None or (stretch.total is not None and stretch.total < slots):
                break
            drawn_s, head_s = drawn_s + stretch.counts(slots), stretch.heads_after(slots)
        return parts

    def _rates(self, share_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Draws per unit of time, the fastest source 1. Only ratios matter."""
        rate_s = np.zeros(len(share_s))
        on = share_s > 0
        if on.any():
            rate = share_s[on] * (self.samples_s[on] / self.tokens_s[on])
            rate_s[on] = np.maximum(rate / rate.max(), _SLOWEST)
        return rate_s


@dataclass(frozen=True, eq=False)
class _Part:
    """Slots under the same weights, from first_slot on, before which source s had drawn_s draws."""

    first_slot: int
    drawn_s: NDArray[np.int64]
    stretch: Stretch


def resolve_mixture(
    source_names: Sequence[str],
    mixture: Mapping[str, MixtureEntry],
    tokens_s: NDArray[np.int64],
    samples_s: NDArray[np.int64],
    curriculum: Sequence[Change] = (),
    batch: int = 1,
) -> Mixture:
    """What the recipe's `mixture:` and `curriculum:` mean for these sources.

    Without a mixture, every source in proportion to its tokens: all finish an epoch together. With one, token shares
    are the weights, and a source that it does not list has weight 1. Sources without samples take no part; max_epochs
    caps a source at ceil(max_epochs · samples) draws. curriculum: changes at steps of `batch` slots; a source that is
    not named keeps its weight. Raises RecipeError for a name that is no source and for changes out of order,
    DataRefused if nothing is left to draw from.
    """
    for name in [*mixture, *(name for change in curriculum for name in change.weights)]:
        _check_name(name, source_names)
    entries = [mixture.get(name, MixtureEntry()) for name in source_names]
    weight_s = np.array([e.weight for e in entries], np.float64) if mixture else tokens_s.astype(np.float64)
    at_slot = {0: weight_s}
    if curriculum and not mixture:
        _check_complete(curriculum[0].weights, source_names, samples_s)
    for step, change in zip(_steps_of(curriculum), curriculum, strict=True):
        weight_s = weight_s.copy()
        for name, weight in change.weights.items():
            weight_s[source_names.index(name)] = weight
        at_slot[step * batch] = weight_s
    caps = [_cap(entry.max_epochs, int(n)) for entry, n in zip(entries, samples_s, strict=True)]
    share_s, *changes = [(slot, np.where(samples_s > 0, w_s, 0.0)) for slot, w_s in at_slot.items()]
    for slot, weights_s in (share_s, *changes):
        if not (weights_s > 0).any():
            raise DataRefused(
                "the mixture has nothing to draw from" + (f" from step {slot // batch} on" if slot else ""),
                why="every source is empty or has weight 0",
                fix="give a source that holds documents a weight above 0",
            )
    sizes = tokens_s.astype(np.int64), samples_s.astype(np.int64)
    return Mixture(share_s[1], *sizes, np.array(caps, np.int64), tuple(changes))


def _check_name(name: str, source_names: Sequence[str]) -> None:
    if name in source_names:
        return
    near = difflib.get_close_matches(name, source_names, 1)
    raise RecipeError(
        f"the mixture names a source that does not exist: '{name}'",
        why=f"the sources are {', '.join(source_names)}",
        fix=f"write '{near[0]}'" if near else "name one of them, or add the source",
    )


def _check_complete(weights: Mapping[str, float], source_names: Sequence[str], samples_s: NDArray[np.int64]) -> None:
    missing = [name for name, n in zip(source_names, samples_s, strict=True) if n and name not in weights]
    if missing:
        raise RecipeError(
            f"a change of weights says nothing of '{missing[0]}'",
            where="curriculum",
            why="without a mixture sources count by their tokens, and a weight means nothing beside those",
            fix="write a mixture, or name every source in the first change",
        )


def _steps_of(curriculum: Sequence[Change]) -> list[int]:
    """The steps of its changes, which don't fall."""
    steps: list[int] = []
    for change in curriculum:
        if isinstance(change.at, str):
            raise RecipeError(
                f"a change of weights at {change.at} has no step",
                where="curriculum",
                why="how long the run is is not known here",
                fix="give the step instead",
            )
        if steps and change.at < steps[-1]:
            raise RecipeError(
                f"the change of weights at step {change.at} stands behind that at step {steps[-1]}",
                where="curriculum",
                fix="put the changes in the order of their steps",
            )
        steps.append(change.at)
    return steps


def _cap(max_epochs: float | None, samples: int) -> int:
    if max_epochs is None or not math.isfinite(max_epochs):
        return ENDLESS
    # As the number is written: 0.07 epochs of 100 samples are 7, not ceil(7.000000000000001).
    return min(math.ceil(Fraction(repr(float(max_epochs))) * samples), LARGEST_DRAW)
