"""Which sample is trained instead of one that lies in a damaged block: a function of the slot and the damage alone.

The next sample of the same source, in the order of that epoch (after its last one, its first), that can be read and
has at least as many predictions; those it has beyond the damaged one's are not predicted. So the number by which the
global loss is divided stays what every rank has planned, nobody needs to know what another rank found, and a run that
is resumed anywhere replaces alike. What was replaced is in the journal; `corrected` and `as_trained` say from there
what a step really held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.tokens import Damage
from sheaf.errors import CorruptStore
from sheaf.order.digest import digest_of_samples
from sheaf.order.order import Order, SampleRef, Use
from sheaf.order.shuffle import permute, shuffle_key, unpermute

TRIED = 64  # samples that may be damaged too before we say that the source is
AHEAD = 256  # samples looked at together for enough predictions


@dataclass(frozen=True, slots=True)
class Replaced:
    """A slot of a step that holds another sample than planned: `by` instead of `index`, of the same source and epoch
    (both as SampleRef.index); `predicted` tokens of it count. damage: why."""

    step: int
    slot: int
    source: int
    epoch: int
    index: int
    by: int
    predicted: int
    damage: Damage

    def to_json(self) -> dict[str, Any]:
        """As the journal has it, in the line of its step."""
        return {
            "sample": self.slot,
            "source": self.source,
            "epoch": self.epoch,
            "index": self.index,
            "by": self.by,
            "predicted": self.predicted,
            "file": self.damage.file,
            "block": self.damage.block,
            "bytes": list(self.damage.bytes),
            "why": self.damage.why,
        }

    @staticmethod
    def from_json(step: int, said: dict[str, Any]) -> Replaced:
        damage = Damage(said["file"], said["block"], (said["bytes"][0], said["bytes"][1]), said["why"])
        source, epoch, index, by, predicted = (said[k] for k in ("source", "epoch", "index", "by", "predicted"))
        return Replaced(step, said["sample"], source, epoch, index, by, predicted, damage)


def candidates(order: Order, source: int, epoch: int, index: int) -> Iterator[int]:
    """Samples of the source that may stand in for one, the next in the epoch's order first; at most TRIED."""
    n, first = int(order.pack.source_samples[source]), int(order.pack.source_first_sample[source])
    key = shuffle_key(order.seed, order.source_names[source], epoch) if order.split == "train" else None
    wanted = order.pack.sample_valid[first + index]
    place = index if key is None else int(unpermute(np.array([index]), n, key)[0])
    offered = 0
    for start in range(1, n, AHEAD):
        at = (place + np.arange(start, min(start + AHEAD, n))) % n
        others = at if key is None else permute(at, n, key)
        for other in others[order.pack.sample_valid[first + others] >= wanted].tolist():
            yield other
            offered += 1
            if offered == TRIED:
                return


def nothing_left(order: Order, damage: Damage, source: int) -> CorruptStore:
    error = damage.error()
    return CorruptStore(
        f"a block of the corpus is damaged, and no sample of source '{order.source_names[source]}' can stand in",
        where=error.where,
        why=error.why,
        fix=error.fix,
    )


def keep_predictions(labels: NDArray[np.int64], most: int) -> None:
    """Have no more than so many tokens of one sample predicted: the first ones."""
    labels[np.flatnonzero(labels >= 0)[most:]] = -100


def as_trained(order: Order, step: int, replaced: Sequence[Replaced]) -> SampleRef:
    """The samples of a step, by slot, with those that stood in for others."""
    planned = order.samples(step)
    index = planned.index.copy()
    for one in replaced:
        if one.step == step:
            index[one.slot] = one.by
    return SampleRef(planned.source, planned.epoch, index)


def digest(order: Order, step: int, replaced: Sequence[Replaced]) -> str:
    """As Order.digest, of what was trained."""
    return digest_of_samples(order.documents, order.runs(as_trained(order, step, replaced)))


def corrected(
    order: Order, uses: Sequence[Use], documents: Sequence[int] | NDArray[np.int64], replaced: Iterable[Replaced]
) -> list[Use]:
    """The uses of these documents that Order.steps_of plans, without what was replaced, with what stood in."""
    by_slot = {(one.step, one.slot): one for one in replaced}
    found = [use for use in uses if (use.step, use.slot) not in by_slot]
    for one in by_slot.values():
        sample = SampleRef(np.array([one.source], np.int32), np.array([one.epoch]), np.array([one.by]))
        runs = order.runs(sample)
        for document in np.intersect1d(runs.document, np.asarray(documents, np.int64)).tolist():
            tokens = int(runs.length[runs.document == document].sum())
            found.append(Use(document, one.step, one.slot, one.source, one.epoch, tokens))
    return sorted(found, key=lambda use: (use.step, use.slot, use.document))
