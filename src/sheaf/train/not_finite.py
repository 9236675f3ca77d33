"""Which documents gave a loss or a gradient that is not finite.

The update was not made, so the step can be computed again: each rank runs its micro-batches once more, alone, and looks
at the loss of every token; where these are finite it looks at the gradient, of the micro-batch and then of each of its
samples. What is found leads back, through the order and the corpus, to records and where they were seen. If every
sample is bad, none of them is the cause: the weights are. Cost: about one more step, once, at the end of a run that
failed; one message of three numbers a rank and sample.

Where ranks share a model none can compute a sample alone. Then nothing is computed again: what is named are the ranks
whose share of the loss is not finite, and all documents of their samples; or of the step, if it is the gradient.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sheaf.corpus import lineage
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import SheafError, TrainingFailed
from sheaf.files import write_json
from sheaf.order.gather import PADDING_LABEL, PADDING_TOKEN, padded
from sheaf.order.loader import Batch, micro
from sheaf.order.replace import Replaced, digest
from sheaf.order.trace import TracedRun, TracedSample, trace_step
from sheaf.parallel.layout import describe
from sheaf.parallel.pulse import Phase, pulse
from sheaf.parallel.ranks import Ranks
from sheaf.train.learner import Learner, NotFinite, tensors

REPORT = "not-finite.json"
LISTED = 100  # samples in the file
NAMED = 3  # documents in the message


@dataclass(frozen=True)
class Found:
    """A sample whose loss is not finite at its positions first … last, or, if these are -1, whose gradient is not (or
    that nothing more is known of)."""

    rank: int
    slot: int
    first: int
    last: int

    @property
    def what(self) -> str:
        return "gradient" if self.first < 0 else "loss"


def explained(
    error: NotFinite,
    learner: Learner,
    batch: Batch,
    replaced: Sequence[Replaced],
    corpus: CorpusVersion,
    run: Path,
) -> TrainingFailed:
    """The error to raise instead, naming step, rank and documents; rank 0 writes all that was found into the run's
    folder. replaced: what stood in for other samples in this step, on any rank. Called by every rank, before the
    gradients are used for anything else."""
    ranks, layout = learner.ranks, learner.spread.mesh.layout
    searched = layout.data == ranks.world
    with pulse.phase(Phase.EVALUATING):
        mine = _bad_samples(learner, batch) if searched else _samples_of_a_bad_share(error, ranks, batch)
        found = _shared(list(mine), batch.order.batch, ranks)
    samples = trace_step(batch.order, batch.step, replaced)
    listed = [_sample(f, samples[f.slot], corpus) for f in found[:LISTED]]
    path = run / REPORT
    if ranks.rank == 0:
        figures = {
            "step": batch.step,
            "loss": str(error.loss),
            "gradient_norm": str(error.norm),
            "layout": layout.model_dump(),
            "searched": searched,
        }
        with contextlib.suppress(SheafError):  # a full disk must not hide what went wrong
            write_json(path, {**figures, "ranks": ranks.world, "found": len(found), "samples": listed})
    where = f"step {batch.step}, samples {digest(batch.order, batch.step, replaced)}"
    why = _said(found, listed, len(samples))
    if not searched:
        slots = {f.slot for f in found} or set(range(len(samples)))
        every = [_sample(Found(0, slot, -1, -1), samples[slot], corpus) for slot in sorted(slots)]
        why = _suspected(every, describe(layout))
    if bad := sorted({f.rank for f in found}):
        where += f", {'rank' if len(bad) == 1 else 'ranks'} {', '.join(map(str, bad))}"
    return TrainingFailed(error.what, where=where, why=f"{error.why}; {why}", fix=_fix(found, samples, path))


def _bad_samples(learner: Learner, batch: Batch) -> Iterator[Found]:
    """Of this rank's part of the step."""
    for part in micro(batch, learner.micro_samples):
        pulse.sign()
        bad = ~torch.isfinite(_token_losses(learner, part)).cpu().numpy()[: len(part.samples)]
        for row in np.flatnonzero(bad.any(axis=1)):
            at = np.flatnonzero(bad[row])
            first, last = int(at[0]), int(at[-1])
            if part.order.packing == "padded":  # a row is one of the sample's documents: all of them are named
                first, last = 0, part.order.sequence_length * len(part.samples)
            yield Found(learner.ranks.rank, int(part.samples[row]), first, last)
        if not bad.any() and not _gradient_is_finite(learner, part):
            for row, slot in enumerate(part.samples):
                if not _gradient_is_finite(learner, _alone(part, row)):
                    yield Found(learner.ranks.rank, int(slot), -1, -1)


def _samples_of_a_bad_share(error: NotFinite, ranks: Ranks, batch: Batch) -> Iterator[Found]:
    if not math.isfinite(error.share):
        yield from (Found(ranks.rank, int(slot), -1, -1) for slot in batch.samples)


def _token_losses(learner: Learner, part: Batch) -> torch.Tensor:
    (model,) = learner.spread.stages
    inputs, labels = tensors(part, learner.ranks.device)
    return model.per_token_loss(model(*inputs).detach(), labels)


def _gradient_is_finite(learner: Learner, part: Batch) -> bool:
    (model,), sums = learner.spread.stages, learner.spread.sums
    inputs, labels = tensors(part, learner.ranks.device)
    sums.zero()
    (model.next_token_loss(model(*inputs), labels) / max(part.valid_tokens, 1)).backward()
    return math.isfinite(sums.squares().item())


def _alone(part: Batch, row: int) -> Batch:
    """One row of a micro-batch, filled up to the same shape: compiled layers know no other."""
    one, rows = slice(row, row + 1), len(part.input_ids)
    ids, labels = padded(part.input_ids[one], rows, PADDING_TOKEN), padded(part.labels[one], rows, PADDING_LABEL)
    return replace(part, input_ids=ids, labels=labels, bounds=part.bounds.some(one, rows))


def _shared(mine: list[Found], slots: int, ranks: Ranks) -> list[Found]:
    """What all ranks have found, on every rank."""
    table = np.zeros((ranks.world, slots, 3))
    for found in mine:
        table[ranks.rank, found.slot] = 1, found.first, found.last
    table = np.array(ranks.sum(table.ravel().tolist())).reshape(table.shape)
    return [Found(int(r), int(s), *(int(n) for n in table[r, s, 1:])) for r, s in np.argwhere(table[:, :, 0])]


def _sample(found: Found, sample: TracedSample, corpus: CorpusVersion) -> dict[str, Any]:
    runs = [r for r in sample.runs if found.first < 0 or (r.position <= found.last and _end(r) > found.first)]
    documents = [
        {"record": r.record, "tokens": [r.start, r.end], "origins": _origins(corpus, r.document)} for r in runs
    ]
    place = {"rank": found.rank, "sample": found.slot, "source": sample.source, "epoch": sample.epoch}
    return {**place, "what": found.what, "documents": documents}


def _end(run: TracedRun) -> int:
    return run.position + run.end - run.start


def _origins(corpus: CorpusVersion, document: int) -> list[dict[str, Any]]:
    """Where a document was seen; nothing if the shards cannot be read now."""
    try:
        return [{key: o[key] for key in ("uri", "member", "locator")} for o in lineage.origins(corpus, document)]
    except (SheafError, OSError):
        return []


def _said(found: list[Found], listed: list[dict[str, Any]], samples: int) -> str:
    if not found:
        return "computed again, every sample is finite: a fault of this moment, or the sum over ranks overflowed"
    if len(found) == samples:
        return f"all {samples} samples of the step give it: the weights are the cause, not a document"
    give = "gives" if len(found) == 1 else "give"
    names = [
        f"the {s['what']} of {_named(s, d)} (sample {s['sample']} on rank {s['rank']})"
        for s in listed
        for d in s["documents"]
    ]
    return f"{len(found)} of {samples} samples {give} it: {_first(names)}"


def _suspected(samples: list[dict[str, Any]], layout: str) -> str:
    """samples: those that may have given it, on no rank in particular."""
    names = dict.fromkeys(_named(sample, document) for sample in samples for document in sample["documents"])
    return (
        f"which sample gives it is not looked for where ranks share a model ({layout}); "
        f"it is among {len(samples)} samples, with {_first(list(names))}"
    )


def _first(names: list[str]) -> str:
    return "; ".join(names[:NAMED]) + (f", and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _named(sample: dict[str, Any], document: dict[str, Any]) -> str:
    uris = [origin["uri"] for origin in document["origins"]]
    seen = f", {uris[0]}" if uris else ""
    return f"record {document['record']} of source {sample['source']}{seen}"


def _fix(found: list[Found], samples: list[TracedSample], path: Path) -> str:
    if found and len(found) < len(samples):
        return f"look at these records, and take out what is broken with `sheaf forget`; all of them are in {path}"
    return "lower train.learning_rate, or go on from an earlier checkpoint; all checkpoints are older than this step"
