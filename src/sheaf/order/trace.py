"""What a global step held, recomputed: its samples, and in each of them which tokens of which document stood where.

Step 10 million is as fast as step 0. Texts and origins are looked up by the corpus' lineage, from the document numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sheaf.order.order import Order, SampleRef
from sheaf.order.replace import Replaced, as_trained


@dataclass(frozen=True, slots=True)
class TracedRun:
    """A stretch of a document in a sample.

    document: row of Documents. record: its id, hex. position: where its inputs begin in the sample (padded: of the rows
    one after another). start, end: its inputs are tokens [start, end) of the document; its labels are tokens [start +
    1, end + 1).
    """

    document: int
    record: str
    position: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TracedSample:
    """One sample of a step: the slot in the step, its source's name, that source's epoch, and its runs in order.

    replaced: why it stands there instead of the planned one, if it does; then no more than its `predicted` first
    predictions count.
    """

    step: int
    slot: int
    source: str
    epoch: int
    runs: tuple[TracedRun, ...]
    replaced: Replaced | None = None


def trace_step(order: Order, step: int, replaced: Sequence[Replaced] = ()) -> list[TracedSample]:
    """The samples of a global step by slot: those planned, but for what was replaced in it. Raises IndexError beyond
    the last step."""
    by_slot = {one.slot: one for one in replaced}
    traced = _traced(order, as_trained(order, step, replaced), order.slot_range(step, step + 1)[0])
    return [replace(sample, replaced=by_slot.get(sample.slot)) for sample in traced]


def trace_slots(order: Order, slot_from: int, slot_to: int) -> list[TracedSample]:
    """The samples in these slots of the whole sequence, in its order."""
    return _traced(order, order.samples_of_slots(slot_from, slot_to), slot_from)


def _traced(order: Order, samples: SampleRef, slot_from: int) -> list[TracedSample]:
    runs = order.runs(samples)
    width = order.buckets(order.rows(samples))[1]
    by_sample: list[list[TracedRun]] = [[] for _ in range(len(samples))]
    for sample, document, start, length in zip(runs.sample, runs.document, runs.start, runs.length, strict=True):
        before = by_sample[sample]
        padded = order.packing == "padded"
        filled = int(width[sample]) if padded else before[-1].end - before[-1].start if before else 0
        position = before[-1].position + filled if before else 0
        record = bytes(order.documents.id[document]).hex()
        before.append(TracedRun(int(document), record, position, int(start), int(start + length)))
    return [
        TracedSample(
            *divmod(slot_from + at, order.batch),
            order.source_names[samples.source[at]],
            int(samples.epoch[at]),
            tuple(runs_of_sample),
        )
        for at, runs_of_sample in enumerate(by_sample)
    ]
