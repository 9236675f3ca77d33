"""Small made-up corpora for the tests of the order: ids, lengths and token files, laid out in any way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from sheaf.corpus.documents import Documents
from sheaf.order.order import Order
from sheaf.recipe import Change, MixtureEntry


@dataclass(frozen=True)
class Corpus:
    documents: Documents
    names: tuple[str, ...]
    token_files: list[NDArray[Any]]

    def tokens(self, document: int) -> NDArray[Any]:
        d = self.documents
        return self.token_files[d.shard[document]][d.offset[document] : d.offset[document] + d.length[document]]

    def order(self, **changes: Any) -> Order:
        settings: dict[str, Any] = {
            "sequence_length": 16, "batch": 4, "seed": 5, "mixture": {}, "held_out": 0.0, "cache": None, **changes,
        }  # fmt: skip
        return Order.build(self.documents, self.names, "a fingerprint", **settings)


def corpus(
    lengths: Sequence[Sequence[int]], *, shards: int = 2, seed: int = 0, layout: int = 0, kind: Any = np.uint16
) -> Corpus:
    """One source for each list of document lengths. `seed` decides ids and tokens, `layout` only where tokens lie."""
    rng = np.random.default_rng(seed)
    source = np.repeat(np.arange(len(lengths), dtype=np.int32), [len(x) for x in lengths])
    length = np.array([n for x in lengths for n in x], np.int64)
    ids = rng.integers(0, 256, (len(length), 16), dtype=np.uint8)
    by_id = np.lexsort((*ids.T[::-1], source))
    ids, length = ids[by_id], length[by_id]
    texts = [rng.integers(1, 60_000, n).astype(kind) for n in length]
    place = np.random.default_rng(layout)
    shard = place.integers(0, shards, len(length)).astype(np.int32)
    offset = np.zeros(len(length), np.int64)
    files: list[list[NDArray[Any]]] = [[] for _ in range(shards)]
    size = [0] * shards
    for document in place.permutation(len(length)):
        offset[document] = size[shard[document]]
        size[shard[document]] += int(length[document])
        files[shard[document]].append(texts[document])
    names = tuple(f"source-{s}" for s in range(len(lengths)))
    flat = [np.concatenate(parts) if parts else np.empty(0, kind) for parts in files]
    return Corpus(Documents(ids, source, shard, offset, length), names, flat)


document_lengths = st.one_of(st.integers(2, 12), st.integers(2, 12), st.integers(12, 90))
source_lengths = st.lists(st.lists(document_lengths, min_size=0, max_size=25), min_size=1, max_size=4).filter(any)
corpora = st.builds(corpus, source_lengths, shards=st.integers(1, 3), seed=st.integers(0, 99))


@st.composite
def recipes(draw: st.DrawFn, made: Corpus) -> dict[str, MixtureEntry]:
    """A mixture for these sources under which every source that holds anything may be drawn."""
    names = draw(st.sets(st.sampled_from(made.names)))
    weight = st.sampled_from([1e-12, 0.5, 1.0, 3.0, 1e9])
    return {name: MixtureEntry(weight=draw(weight)) for name in sorted(names)}


@st.composite
def curricula(draw: st.DrawFn, made: Corpus) -> tuple[Change, ...]:
    """Changes for these sources that leave each that holds anything a weight. They need a mixture that names some."""
    weight = st.sampled_from([1e-12, 0.5, 1.0, 3.0, 1e9])
    steps = draw(st.lists(st.integers(0, 15), max_size=4).map(sorted))
    weights = st.dictionaries(st.sampled_from(made.names), weight, min_size=1)
    return tuple(Change(at=step, weights=draw(weights)) for step in steps)
