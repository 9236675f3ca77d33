"""What simple means reach on the held-out text: `xz -9e`, and a unigram model of the training tokens.

Both in bits per byte of the same UTF-8 text that the model is judged on. xz sees the held-out text alone, all of it in
one piece, so it may learn from it; the unigram model has the token counts of the training text, one added to each.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.version import CorpusVersion
from sheaf.order.order import Order


@dataclass(frozen=True)
class Baselines:
    """Bits per byte. bytes, documents: of the held-out text."""

    xz: float
    unigram: float
    bytes: int
    documents: int


def baselines(corpus: CorpusVersion, held_out: Order) -> Baselines:
    """On all documents of a held-out order that is not empty."""
    numbers = np.unique(held_out.pack.run_document)
    texts = [text.encode() for text in corpus.texts(numbers)]
    size = sum(map(len, texts))
    packed = len(lzma.compress(b"".join(texts), preset=9 | lzma.PRESET_EXTREME))
    bits = _unigram_bits(corpus, numbers)
    return Baselines(xz=8 * packed / size, unigram=bits / size, bytes=size, documents=len(numbers))


def _unigram_bits(corpus: CorpusVersion, held_out: NDArray[np.integer]) -> float:
    """Bits that the held-out tokens, ends of text included, cost under the counts of all others."""
    outside = np.ones(len(corpus.documents), bool)
    outside[held_out] = False
    counts = _counts(corpus, np.flatnonzero(outside)) + 1
    cost = -np.log2(counts / counts.sum())
    return float(_counts(corpus, held_out) @ cost)


def _counts(corpus: CorpusVersion, numbers: NDArray[np.integer]) -> NDArray[np.int64]:
    """How often each token stands in these documents: int64 (vocabulary,)."""
    documents, token_files = corpus.documents, corpus.token_files()
    total = np.zeros(corpus.vocab_size, np.int64)
    for number in numbers:
        start = int(documents.offset[number])
        tokens = token_files[int(documents.shard[number])][start : start + int(documents.length[number])]
        total += np.bincount(tokens, minlength=corpus.vocab_size)
    return total
