"""The texts that a tokenizer is trained on: of each source its share of the mixture, the records of lowest id first.

Ids are hashes, so the lowest are a random sample, and it depends on nothing but the set of records. Shares are the
weights of the recipe's mixture (without one, the sources' sizes, as in training); what a small source cannot fill goes
to the others in proportion. Texts are as trained: what the recipe masks is not in them. Memory: one batch of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus.columns import Array, chunks
from sheaf.corpus.decided import Decided
from sheaf.corpus.version import read_rows
from sheaf.corpus.workspace import Workspace
from sheaf.prepare import protect
from sheaf.recipe import MixtureEntry

BATCH_BYTES = 16 << 20  # of texts held at once; a single longer one is held too


@dataclass(frozen=True)
class Sample:
    """bytes: by source, what it gives. masked: kinds of personal data that are masked."""

    bytes: list[int]
    masked: tuple[str, ...] = ()

    def texts(self, workspace: Workspace, live_shards: Sequence[str], decided: Decided) -> Iterator[list[str]]:
        """Batches of texts, source by source, in the order of ids; the last of a source may be cut."""
        for source, limit in enumerate(self.bytes):
            left = limit
            for ranks in _batches(decided, source, limit):
                texts = _read(workspace, live_shards, decided, ranks, self.masked)
                whole = int(decided.text_bytes[ranks].sum())
                if whole > left:  # the last one may be a book
                    data = texts[-1].encode()
                    texts[-1] = data[: max(len(data) - (whole - left), 0)].decode("utf-8", "ignore")
                left -= whole
                yield texts


def plan(
    decided: Decided,
    names: Sequence[str],
    mixture: Mapping[str, MixtureEntry],
    limit_bytes: int,
    masked: Sequence[str] = (),
) -> Sample:
    sizes = [_kept_bytes(decided, source) for source in range(len(names))]
    weights = [mixture.get(name, MixtureEntry()).weight for name in names] if mixture else [float(n) for n in sizes]
    return Sample(shares(sizes, weights, limit_bytes), tuple(masked))


def shares(sizes: Sequence[int], weights: Sequence[float], limit: int) -> list[int]:
    """Split `limit` by weight; nobody gets more than its size, and the others share what it leaves."""
    result = [0] * len(sizes)
    open_ = [i for i, size in enumerate(sizes) if size > 0 and weights[i] > 0]
    if not open_:  # all weights are on sources that hold nothing
        open_, weights = [i for i, size in enumerate(sizes) if size > 0], [1.0] * len(sizes)
    left = limit
    while open_:
        total = sum(weights[i] for i in open_)
        small = [i for i in open_ if sizes[i] <= left * (weights[i] / total)]
        for i in small or open_:
            result[i] = sizes[i] if small else int(left * (weights[i] / total))
        if not small:
            break
        left -= sum(sizes[i] for i in small)
        open_ = [i for i in open_ if i not in small]
    return result


def _kept_bytes(decided: Decided, source: int) -> int:
    first, last = int(decided.first[source]), int(decided.first[source + 1])
    pieces = ((first + a, first + b) for a, b in chunks(last - first))
    return sum(int(decided.text_bytes[a:b][decided.kept(a, b)].sum()) for a, b in pieces)


def _batches(decided: Decided, source: int, limit: int) -> Iterator[Array]:
    """Ranks of the source's kept records with text, the lowest ids first, until they hold `limit` bytes."""
    first, last = int(decided.first[source]), int(decided.first[source + 1])
    taken = 0
    for a, b in chunks(last - first):
        here = slice(first + a, first + b)
        ranks = np.flatnonzero(decided.kept(here.start, here.stop) & (decided.text_bytes[here] > 0)) + here.start
        before = taken + np.cumsum(decided.text_bytes[ranks]) - decided.text_bytes[ranks]
        ranks = ranks[before < limit]
        if not len(ranks):
            return
        sizes = np.cumsum(decided.text_bytes[ranks])
        cuts = np.flatnonzero(np.diff(sizes // BATCH_BYTES)) + 1
        yield from np.split(ranks, cuts)
        taken += int(sizes[-1])


def _read(
    workspace: Workspace, live_shards: Sequence[str], decided: Decided, ranks: Array, masked: Sequence[str]
) -> list[str]:
    texts: list[str] = [""] * len(ranks)
    shard, row = decided.shard[ranks], decided.row[ranks]
    for number in map(int, np.unique(shard)):
        here = np.flatnonzero(shard == number)
        here = here[np.argsort(row[here])]
        read = [r["text"] for r in read_rows(workspace.shard(live_shards[number]), row[here], ["text"])]
        if masked:
            read = _masked(workspace, live_shards[number], row[here], read, masked)
        for at, text in zip(here, read, strict=True):
            texts[at] = text
    return texts


def _masked(workspace: Workspace, shard: str, rows: Array, texts: list[str], kinds: Sequence[str]) -> list[str]:
    found = rows_of(protect.findings(workspace, shard), rows)
    return protect.masked(pa.array(texts, pa.large_string()), found, kinds).to_pylist()


def rows_of(findings: pa.Table, rows: Array) -> pa.Table:
    """The findings of these rows (ascending), counted from 0 among them."""
    place: Any = pc.index_in(findings["row"], pa.array(rows, findings["row"].type))
    moved = findings.set_column(0, "row", place.cast(findings["row"].type))
    return moved.filter(pc.is_valid(moved["row"]))
