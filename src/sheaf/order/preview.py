"""The first samples of an order as they will be trained: their documents, what of them is predicted, control tokens.

The texts are decoded from the very tokens that a batch holds, so they show what the model will see: personal data
masked as the corpus masks it, a conversation as its template wrote it, the token that ends a document. Nothing is
trained and nothing is written but the pack, which training finds again. Cost: the samples asked for, no more.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus import lineage
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.order.order import Order
from sheaf.order.trace import TracedRun, TracedSample, trace_slots
from sheaf.prepare.encoder import Encoder

Json = dict[str, Any]
MOST = 1000  # samples at once: all of them are held as text


def preview(order: Order, corpus: CorpusVersion, samples: int) -> Json:
    """{"corpus", "sequence_length", "batch", "steps", "samples": [{"step", "sample", "source", "epoch", "positions",
    "predicted", "documents": [{"record", "tokens", "length", "position", "predicted", "pieces", "origins"}]}]}.

    positions: tokens that the sample holds; up to sequence_length the rest is padding. tokens: [from, to) of the
    document's `length` tokens; all but the last are inputs, all but the first may be predicted, `predicted` of them
    are. pieces: [{"text", "tokens", "predicted", "special"}], stretches of the document of one kind each. Raises
    UsageError for less than one sample or more than MOST.
    """
    if not 1 <= samples <= MOST:
        raise UsageError(f"{samples} samples cannot be previewed", fix=f"ask for 1 to {MOST}")
    end = samples if order.steps is None else min(samples, order.steps * order.batch)
    shown = _Shown(order, corpus)
    return {
        "corpus": corpus.digest,
        "sequence_length": order.sequence_length,
        "batch": order.batch,
        "steps": order.steps,
        "samples": [shown.sample(sample) for sample in trace_slots(order, 0, end)],
    }


class _Shown:
    """The files of a corpus, opened once."""

    def __init__(self, order: Order, corpus: CorpusVersion) -> None:
        self._corpus, self._documents = corpus, order.documents
        self._encoder = Encoder(corpus.tokenizer_path)
        self._tokens, self._losses = corpus.token_files(), order.losses
        control = [*self._encoder.control_ids.values(), corpus.end_of_text]
        self._control = np.unique(np.array(control, np.int64))

    def sample(self, sample: TracedSample) -> Json:
        documents = [self._document(run) for run in sample.runs]
        return {
            "step": sample.step,
            "sample": sample.slot,
            "source": sample.source,
            "epoch": sample.epoch,
            "positions": sum(run.end - run.start for run in sample.runs),
            "predicted": sum(document["predicted"] for document in documents),
            "documents": documents,
        }

    def _document(self, run: TracedRun) -> Json:
        shard, offset = int(self._documents.shard[run.document]), int(self._documents.offset[run.document])
        here = slice(offset + run.start, offset + run.end + 1)
        ids = np.asarray(self._tokens[shard][here], np.int64)
        loss = self._losses[shard] if self._losses else None
        predicted = np.ones(len(ids), np.uint8) if loss is None else np.asarray(loss[here])
        return {
            "record": run.record,
            "tokens": [run.start, run.end + 1],
            "length": int(self._documents.length[run.document]),
            "position": run.position,
            "predicted": int(predicted[1:].sum()),
            "pieces": self._pieces(ids, predicted),
            "origins": lineage.origins(self._corpus, run.document),
        }

    def _pieces(self, ids: NDArray[np.int64], predicted: NDArray[np.uint8]) -> list[Json]:
        special = np.isin(ids, self._control)
        kind = predicted + 2 * special
        cuts = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), len(ids)]
        return [
            {
                "text": self._encoder.decode(ids[a:b].tolist()),
                "tokens": b - a,
                "predicted": bool(predicted[a]),
                "special": bool(special[a]),
            }
            for a, b in itertools.pairwise(cuts)
        ]
