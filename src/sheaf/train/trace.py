"""From a step of a run to source bytes, and from a source item to the steps that saw it. Recomputed, not logged.

The order says which documents stood in the step, the corpus says where each was seen. A span of tokens is shown with
its text, as it was trained: personal data masked as the recipe asks, a conversation as its template writes it. Where a
text file's bytes are the record's text unchanged, also with the very bytes of the span; a mark's are those it hides.
Verifying reads the origin again, normalises, masks, and compares with the text that was trained.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus import lineage
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.formats.schema import CHATS
from sheaf.order.order import Order
from sheaf.order.trace import TracedRun, TracedSample, trace_step
from sheaf.prepare.encoder import Encoder
from sheaf.privacy import Masked, masked_text
from sheaf.train.checkpoint import list_checkpoints
from sheaf.train.journal import read as read_journal
from sheaf.train.run import Run
from sheaf.train.setup import order_of

Json = dict[str, Any]
# Parsers of these types take the member's bytes as they are: an offset in the text is an offset in the bytes.
VERBATIM = "text/"
RENDERED = ("text/html", "text/csv", "text/tab-separated-values")


def trace_run(run: Path, step: int, sample: int | None = None, *, verify: bool = False) -> Json:
    """{"step", "samples": [{"sample", "source", "epoch", "documents": [{"record", "tokens", "text", "origins"}]}]}.

    step: as in the journal, from 0. sample: one slot of the step. tokens: the document's tokens whose prediction was
    trained on or from, [from, to). verify: read every origin again; each gets "verified": true, or the reason why not.
    Raises UsageError if the run has not made this step or the step has no such sample.
    """
    opened = Run.open(run)
    corpus = opened.corpus()
    order = order_of(opened.recipe, corpus, "train")
    samples = _samples(order, opened, step, sample)
    encoder = _encoder(corpus.tokenizer_path)
    with ExitStack() as stack:
        again = stack.enter_context(lineage.Rereader(corpus)) if verify else None
        shown = [[_document(corpus, encoder, r, again) for r in s.runs] for s in samples]
    return {
        "step": step,
        "run": str(opened.folder),
        "corpus": corpus.digest,
        "samples": [
            {
                "sample": s.slot,
                "source": s.source,
                "epoch": s.epoch,
                "documents": documents,
            }
            for s, documents in zip(samples, shown, strict=True)
        ],
    }


def trace_item(run: Path, pattern: str) -> Json:
    """Every step and sample that used a record of the items whose URI contains or matches the pattern."""
    opened = Run.open(run)
    corpus = opened.corpus()
    numbers = lineage.documents_of(corpus, pattern)
    order = order_of(opened.recipe, corpus, "train")
    done = len(read_journal(opened.folder))
    uses = order.steps_of(numbers, done) if len(numbers) and done else []
    without_text = lineage.without_text(corpus, pattern)
    first = min((u.step for u in uses), default=None)
    checkpoints = sorted(p.name for p in list_checkpoints(opened.folder))
    return {
        "item": pattern,
        "documents": [bytes(corpus.documents.id[n]).hex() for n in numbers],
        "without_text": without_text,
        "uses": [
            {
                "step": u.step,
                "sample": u.slot,
                "record": bytes(corpus.documents.id[u.document]).hex(),
                "source": order.source_names[u.source],
                "epoch": u.epoch,
            }
            for u in uses
        ],
        "checkpoints": [] if first is None else [c for c in checkpoints if int(c.rpartition("-")[2]) > first],
    }


def _samples(order: Order, run: Run, step: int, sample: int | None) -> list[TracedSample]:
    done = len(read_journal(run.folder))
    if not 0 <= step < done:
        raise UsageError(
            f"the run has not made step {step}",
            where=str(run.folder),
            why=f"its journal has steps 0 to {done - 1}" if done else "its journal is empty",
            fix="name a step of the journal",
        )
    samples = trace_step(order, step)
    if sample is not None and not 0 <= sample < len(samples):
        raise UsageError(f"step {step} has samples 0 to {len(samples) - 1}, not {sample}", where=str(run.folder))
    return samples if sample is None else [samples[sample]]


def _document(corpus: CorpusVersion, encoder: Encoder, run: TracedRun, again: lineage.Rereader | None) -> Json:
    record = corpus.records([run.document])[0]
    masked = masked_text(record["text"], corpus.masked)
    length = int(corpus.documents.length[run.document])
    # inputs [start, end) predict up to token `end`; the last token of a document is its end, which has no text
    until = min(run.end + 1, length - 1)
    span = None
    if record["kind"] in CHATS:
        shown = encoder.decode(_ids(corpus, run.document)[run.start : until].tolist())
    else:
        span = _byte_span(corpus, encoder, run.document, run.start, until)
        raw = masked.text.encode()
        shown = masked.text if span is None else raw[span[0] : span[1]].decode("utf-8", "ignore")
    origins = [_origin(o, record["text"], masked, span, again) for o in lineage.origins(corpus, run.document)]
    return {
        "record": run.record,
        "tokens": [run.start, until],
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
