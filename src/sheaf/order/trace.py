"""What a global step held, recomputed: its samples, and in each of them which tokens of which document stood where.

Step 10 million is as fast as step 0. Texts and origins are looked up by the corpus' lineage, from the document numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from sheaf.order.order import Order


@dataclass(frozen=True, slots=True)
class TracedRun:
    """A stretch of a document in a sample.

    document: row of Documents. record: its id, hex. position: where its inputs begin in the sample. start, end: its
    inputs are tokens [start, end) of the document; its labels are tokens [start + 1, end + 1).
    """

    document: int
    record: str
    position: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TracedSample:
    """One sample of a step: the slot in the step, its source's name, that source's epoch, and its runs in order."""

    step: int
    slot: int
    source: str
    epoch: int
    runs: tuple[TracedRun, ...]


def trace_step(order: Order, step: int) -> list[TracedSample]:
    """The samples of a global step by slot. Raises IndexError beyond the last step."""
    return trace_slots(order, *order.slot_range(step, step + 1))


def trace_slots(order: Order, slot_from: int, slot_to: int) -> list[TracedSample]:
    """The samples in these slots of the whole sequence, in its order."""
    samples = order.samples_of_slots(slot_from, slot_to)
    runs = order.runs(samples)
    by_sample: list[list[TracedRun]] = [[] for _ in range(len(samples))]
    for sample, document, start, length in zip(runs.sample, runs.document, runs.start, runs.length, strict=True):
        before = by_sample[sample]
        position = before[-1].position + before[-1].end - before[-1].start if before else 0
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
