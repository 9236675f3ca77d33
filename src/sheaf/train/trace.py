"""From a step of a run to source bytes, and from a source item to the steps that saw it. Recomputed, not logged.

The order says which documents stood in the step, the corpus says where each was seen. A span of tokens is shown with
its text, as it was trained: personal data masked as the recipe asks, a conversation as its template writes it. Where a
text file's bytes are the record's text unchanged, also with the very bytes of the span; a mark's are those it hides.
Verifying reads the origin again, normalises, masks, and compares with the text that was trained.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus import lineage
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.formats.schema import CHATS
from sheaf.order.order import Order, Runs
from sheaf.order.replace import Replaced
from sheaf.order.trace import TracedRun, TracedSample, trace_step
from sheaf.prepare.encoder import Encoder
from sheaf.privacy import Masked, masked_text
from sheaf.train.checkpoint import list_checkpoints
from sheaf.train.damage import replaced_in, uses_of
from sheaf.train.journal import read as read_journal
from sheaf.train.journal import read_step, steps_done
from sheaf.train.run import Run
from sheaf.train.setup import order_of

Json = dict[str, Any]
# Parsers of these types take the member's bytes as they are: an offset in the text is an offset in the bytes.
VERBATIM = "text/"
RECORD_ID = re.compile(r"[0-9a-f]{32}")
RENDERED = ("text/html", "text/csv", "text/tab-separated-values")


def trace_run(
    run: Path,
    step: int,
    sample: int | None = None,
    *,
    rank: int | None = None,
    token: int | None = None,
    verify: bool = False,
) -> Json:
    """{"step", "samples": [{"sample", "rank", "row", "source", "epoch", "documents": [{"record", "tokens", "text",
    "origins"}]}]}.

    step: as in the journal, from 0. sample: one slot of the step, or with `rank` one row of that rank's batch. token:
    one position of the sample; its document alone is there, with "tokens" and "text" of this token, and "predicts":
    the token that is learned there, null if none is. tokens: the document's tokens whose prediction was trained on or
    from, [from, to). verify: read every origin again; each gets "verified": true, or the reason why not. Raises
    UsageError if the run has not made this step or the step has no such rank, sample or token. A sample that stood in
    for one in a damaged block is shown as it was trained, and has "instead_of": {"index", "predicted", "file",
    "block"}.
    """
    opened = Run.open(run)
    corpus = opened.corpus()
    order = order_of(opened.recipe, corpus, "train")
    line = _journalled(opened, step)
    places = places_of(order, line)
    if token is not None and sample is None:
        raise UsageError("a token is one of a sample", fix=f"name the sample too: --sample 0 --token {token}")
    samples = _samples(order, line, sample, rank, places)
    encoder = _encoder(corpus.tokenizer_path)
    with ExitStack() as stack:
        again = stack.enter_context(lineage.Rereader(corpus)) if verify else None
        if token is None:
            shown = [[_document(corpus, encoder, r, _span(corpus, r), again) for r in s.runs] for s in samples]
        else:
            shown = [[_token(corpus, encoder, order, s, token, again)] for s in samples]
    return {
        "step": step,
        "run": str(opened.folder),
        "corpus": corpus.digest,
        "samples": [
            {
                "sample": s.slot,
                "rank": places[s.slot][0],
                "row": places[s.slot][1],
                "source": s.source,
                "epoch": s.epoch,
                "documents": documents,
                **({} if s.replaced is None else {"instead_of": _instead(s.replaced)}),
            }
            for s, documents in zip(samples, shown, strict=True)
        ],
    }


def trace_item(run: Path, pattern: str) -> Json:
    """Every step and sample that used a record: by its id, or those of the items whose URI contains or matches the
    pattern. Each use has the sample's slot in the step, its rank and row there, and how many of the record's tokens
    were inputs."""
    opened = Run.open(run)
    corpus = opened.corpus()
    by_id = _with_id(corpus, pattern)
    numbers = by_id if len(by_id) else lineage.documents_of(corpus, pattern)
    order = order_of(opened.recipe, corpus, "train")
    lines = read_journal(opened.folder)
    uses = uses_of(order, numbers, lines) if len(numbers) and lines else []
    without_text = 0 if len(by_id) else lineage.without_text(corpus, pattern)
    first = min((u.step for u in uses), default=None)
    checkpoints = sorted(p.name for p in list_checkpoints(opened.folder))
    places = {step: places_of(order, lines[step]) for step in {u.step for u in uses}}
    return {
        "item": pattern,
        "documents": [bytes(corpus.documents.id[n]).hex() for n in numbers],
        "without_text": without_text,
        "uses": [
            {
                "step": u.step,
                "sample": u.slot,
                "rank": places[u.step][u.slot][0],
                "row": places[u.step][u.slot][1],
                "record": bytes(corpus.documents.id[u.document]).hex(),
                "tokens": u.tokens,
                "source": order.source_names[u.source],
                "epoch": u.epoch,
            }
            for u in uses
        ],
        "checkpoints": [] if first is None else [c for c in checkpoints if int(c.rpartition("-")[2]) > first],
    }


def places_of(order: Order, line: Json) -> dict[int, tuple[int, int]]:
    """Slot of the step → (rank, row of its batch), as the step was made by the journal's line of it."""
    split = order.split_ranks(line["step"], line["sample_ranks"], tuple(line.get("speeds", ())) or None)
    return {slot: (rank, row) for rank, slots in enumerate(split) for row, slot in enumerate(slots.tolist())}


def _with_id(corpus: CorpusVersion, pattern: str) -> NDArray[np.int64]:
    """The document with this record id (of several sources: each), if the pattern is one."""
    if not RECORD_ID.fullmatch(pattern):
        return np.zeros(0, np.int64)
    wanted = np.frombuffer(bytes.fromhex(pattern), np.uint8)
    return np.flatnonzero((corpus.documents.id == wanted).all(axis=1)).astype(np.int64)


def _journalled(run: Run, step: int) -> Json:
    line = read_step(run.folder, step)
    if line is not None:
        return line
    steps = steps_done(run.folder)
    raise UsageError(
        f"the run has not made step {step}",
        where=str(run.folder),
        why=f"its journal has steps 0 to {steps - 1}" if steps else "its journal is empty",
        fix="name a step of the journal",
    )


def _samples(
    order: Order, line: Json, sample: int | None, rank: int | None, places: dict[int, tuple[int, int]]
) -> list[TracedSample]:
    step, world = line["step"], line["sample_ranks"]
    if rank is not None and not 0 <= rank < world:
        raise UsageError(f"step {step} was made by ranks 0 to {world - 1}, not {rank}")
    here = [s for s in trace_step(order, step, replaced_in(line)) if rank is None or places[s.slot][0] == rank]
    if sample is None:
        return here
    if not 0 <= sample < len(here):
        whose = f"step {step}" if rank is None else f"rank {rank} in step {step}"
        raise UsageError(f"{whose} has {f'samples 0 to {len(here) - 1}' if here else 'no samples'}, not {sample}")
    return [here[sample]]


def _token(
    corpus: CorpusVersion,
    encoder: Encoder,
    order: Order,
    sample: TracedSample,
    position: int,
    again: lineage.Rereader | None,
) -> Json:
    """The document in which the sample's position lies, cut down to the token there."""
    end = max(run.position + run.end - run.start for run in sample.runs)
    held = [run for run in sample.runs if run.position <= position < run.position + run.end - run.start]
    if not held:
        padding = f"{end} to {order.sequence_length - 1} are padding" if end < order.sequence_length else ""
        raise UsageError(
            f"sample {sample.slot} of step {sample.step} has tokens 0 to {end - 1}, not {position}",
            why=f"{position} is padding behind a shorter row" if 0 <= position < end else padding,
        )
    (run,) = held
    at = run.start + position - run.position
    here, following = (int(i) for i in _ids(corpus, run.document)[at : at + 2])
    documents = corpus.documents
    loss = order.losses[int(documents.shard[run.document])] if order.losses else None
    learned = loss is None or bool(loss[int(documents.offset[run.document]) + at + 1])
    if learned and sample.replaced is not None:
        learned = _predictions(order, sample, position) < sample.replaced.predicted
    shown = _document(corpus, encoder, replace(run, position=position), (at, at + 1), again)
    learns = {"id": following, "text": encoder.decode([following])} if learned else None
    return {**shown, "id": here, "text": encoder.decode([here]), "predicts": learns}


def _predictions(order: Order, sample: TracedSample, position: int) -> int:
    """How many tokens the sample predicts before this position."""
    before = [(r.document, r.start, min(r.end - r.start, position - r.position)) for r in sample.runs]
    document, start, length = np.array([run for run in before if run[2] > 0], np.int64).reshape(-1, 3).T
    return int(order.predictions(Runs(np.zeros(len(document), np.int64), document, start, length)).sum())


def _instead(replaced: Replaced) -> Json:
    damage = replaced.damage
    said = {"index": replaced.index, "predicted": replaced.predicted}
    return {**said, "file": damage.file, "block": damage.block, "why": damage.why}


def _span(corpus: CorpusVersion, run: TracedRun) -> tuple[int, int]:
    # inputs [start, end) predict up to token `end`; the last token of a document is its end, which has no text
    return run.start, min(run.end + 1, int(corpus.documents.length[run.document]) - 1)


def _document(
    corpus: CorpusVersion, encoder: Encoder, run: TracedRun, tokens: tuple[int, int], again: lineage.Rereader | None
) -> Json:
    """What is known of a run's document; `tokens` of it are shown."""
    record = corpus.records([run.document])[0]
    masked = masked_text(record["text"], corpus.masked)
    start, until = tokens
    span = None
    if record["kind"] in CHATS:
        shown = encoder.decode(_ids(corpus, run.document)[start:until].tolist())
    else:
        span = _byte_span(corpus, encoder, run.document, start, until)
        raw = masked.text.encode()
        shown = masked.text if span is None else raw[span[0] : span[1]].decode("utf-8", "ignore")
    origins = [_origin(o, record["text"], masked, span, again) for o in lineage.origins(corpus, run.document)]
    return {
        "record": run.record,
        "tokens": [start, until],
        "position": run.position,
        "text": shown,
        "origins": origins,
    }


def _byte_span(corpus: CorpusVersion, encoder: Encoder, document: int, start: int, end: int) -> tuple[int, int] | None:
    """Where the tokens [start, end) of a document lie in its text's UTF-8 bytes."""
    ends = encoder.spans(_ids(corpus, document)[:-1])
    if ends is None:
        return None
    return (int(ends[start - 1]) if start else 0, int(ends[end - 1]) if end else 0)


def _ids(corpus: CorpusVersion, document: int) -> NDArray[np.unsignedinteger]:
    """The document's tokens; the last one is its end."""
    documents = corpus.documents
    offset, length = int(documents.offset[document]), int(documents.length[document])
    return corpus.token_files()[int(documents.shard[document])][offset : offset + length]


def _origin(
    origin: Json, text: str, masked: Masked, span: tuple[int, int] | None, again: lineage.Rereader | None
) -> Json:
    """span: of the masked text."""
    inside = None if span is None else masked.to_source(*span)
    bytes_of = _source_bytes(origin, len(text.encode()), inside)
    shown = origin if bytes_of is None else {**origin, "span": bytes_of}
    if again is None:
        return shown
    try:
        same = masked_text(again.text(origin), masked.kinds).text == masked.text
    except lineage.SourceChanged as error:
        return {**shown, "verified": False, "why": error.why or error.what}
    return {**shown, "verified": same}


def _source_bytes(origin: Json, text_bytes: int, span: tuple[int, int] | None) -> list[int] | None:
    """The span's own bytes inside the member, where the record is the beginning of its bytes there, unchanged.

    (Normalising cuts blanks at a text's end without calling it a repair.)
    """
    where = origin["locator"].get("bytes")
    verbatim = origin["media"].startswith(VERBATIM) and origin["media"] not in RENDERED
    unchanged = origin["encoding"] in ("utf-8", "ascii") and origin["repairs"] == ""
    if span is None or where is None or not verbatim or not unchanged or text_bytes > where[1] - where[0]:
        return None
    return [where[0] + span[0], where[0] + span[1]]


@lru_cache(maxsize=2)
def _encoder(path: Path) -> Encoder:
    return Encoder(path)
