"""The stage that finds parts of evaluation files in training records.

Every sequence of as many words as a piece of the evaluation files has (`evaluation`) is looked up in their table: a
rolling hash a width, a filter of bits that stays in the processor's cache, and a look into the table for the few that
pass it: keys are spread evenly, so their first bits lead to the one or two that can be meant. A
record that holds a piece is told with the evaluation record that it has most pieces of. What follows is decided in
`select`.
Cost: one pass over the text for its words and a look-up a word and width, over 50 MB/s a core in all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheaf.corpus import shards
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import checked, task_folder
from sheaf.kernel import kernel
from sheaf.prepare import words
from sheaf.prepare.evaluation import Exams, build

__all__ = ["HITS", "build", "hits", "search", "stage", "task"]

HITS = pa.schema(
    [
        pa.field("row", pa.int32()),  # of the shard's records
        pa.field("detail", pa.string()),  # "evals/gsm.jsonl row 17, 5 of 41 pieces"
        pa.field("grams", pa.int32()),  # different pieces of that evaluation record that are in the text
    ]
)
BATCH_BYTES = 8 << 20  # of text at a time: words take some twice as much
_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)  # of evaluation.hash_pieces, which the tests hold this one to
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


def stage(exams: str) -> str:
    """Name and version of the stage against these evaluation files: part of the folder's name."""
    return f"evaluation-1-{exams[:16]}"


def task(workspace: Workspace, exams: str, shard: str) -> Task:
    arguments = {"workspace": workspace.where, "exams": exams, "shard": shard}
    return Task("sheaf.prepare.decontaminate:search_shard", arguments, label=f"evaluation {shard[:8]}")


def search_shard(workspace: str, exams: str, shard: str) -> Json:
    store = Workspace.at(workspace)
    texts = shards.read(store.shard(shard), "records", ["text"])["text"].combine_chunks()
    found = search(texts, Exams.open(store, exams))
    with task_folder(store.scores(shard, stage(exams)), stage="evaluation") as out:
        pq.write_table(found, out / "hits.parquet", compression="zstd")
    return {"records": len(texts), "hits": len(found)}


def hits(workspace: Workspace, exams: str, shard: str) -> pa.Table:
    """HITS of a shard, by row: only rows that hold a piece of an evaluation file."""
    return pq.read_table(checked(workspace.scores(shard, stage(exams)) / "hits.parquet"))


def search(texts: pa.LargeStringArray, exams: Exams) -> pa.Table:
    """HITS in these texts."""
    sieve = _sieve(exams.keys)
    found: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    for start, part in _batches(texts):
        hashes, first = words.hashes(part)
        pairs = _pairs(hashes, first, exams, sieve)
        pairs[:, 0] += start
        found.append(pairs)
    return _best(np.concatenate(found), exams)


def _batches(texts: pa.LargeStringArray) -> Iterator[tuple[int, pa.LargeStringArray]]:
    size = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(size)
    start = 0
    while start < len(texts):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + BATCH_BYTES, "right")), start + 1)
        yield start, texts.slice(start, stop - start)
        start = stop


Sieve = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _sieve(keys: NDArray[np.uint64]) -> Sieve:
    """Bits, some 16 a key, by a key's first bits: what is not set is no key. And where in the sorted keys those begin
    that share 4 bits less."""
    bits = max(16, int(16 * len(keys) - 1).bit_length())
    table = np.zeros(1 << (bits - 3), np.uint8)
    place = (keys >> np.uint64(64 - bits)).astype(np.int64)
    np.bitwise_or.at(table, place >> 3, (1 << (place & 7)).astype(np.uint8))
    return table, np.searchsorted(place >> 4, np.arange((1 << (bits - 4)) + 1)).astype(np.int64)


def _pairs(hashes: NDArray[np.uint64], first: NDArray[np.int64], exams: Exams, sieve: Sieve) -> NDArray[np.int64]:
    """int64 (n, 2): text and key, for each place where a key's piece lies."""
    room = 1024
    while True:
        out = np.empty((room, 2), np.int64)
        n = _look_up(hashes, first, exams.widths, exams.keys, *sieve, out)
        if n <= room:
            return out[:n]
        room = n


def _best(pairs: NDArray[np.int64], exams: Exams) -> pa.Table:
    """For each text the evaluation record that it has most pieces of, the first of equals."""
    pairs = np.unique(pairs, axis=0)
    owned = np.stack([pairs[:, 0], exams.owners[pairs[:, 1]]], axis=1)
    owned, pieces = np.unique(owned, axis=0, return_counts=True)
    order = np.lexsort((owned[:, 1], -pieces, owned[:, 0]))
    owned, pieces = owned[order], pieces[order]
    first = np.ones(len(owned), bool)
    first[1:] = owned[1:, 0] != owned[:-1, 0]
    owned, pieces = owned[first], pieces[first]
    records = exams.records.take(pa.array(owned[:, 1]))
    of = zip(records["name"].to_pylist(), pieces.tolist(), records["pieces"].to_pylist(), strict=True)
    detail = [f"{name}, {n} of {all_of_it} piece{'s' * (all_of_it != 1)}" for name, n, all_of_it in of]
    columns = [pa.array(owned[:, 0], pa.int32()), pa.array(detail, pa.string()), pa.array(pieces, pa.int32())]
    return pa.Table.from_arrays(columns, schema=HITS)


@kernel
def _look_up(
    hashes: NDArray[np.uint64],
    first: NDArray[np.int64],
    widths: NDArray[np.int64],
    keys: NDArray[np.uint64],
    filter_bits: NDArray[np.uint8],
    starts: NDArray[np.int64],
    out: NDArray[np.int64],
) -> int:
    """Write (text, key) of each hit into `out` as far as it reaches, and give their number."""
    n = 0
    shift = np.uint64(64)
    bits = len(filter_bits) * 8
    while bits > 1:
        shift -= np.uint64(1)
        bits >>= 1
    for k in widths:
        power = np.uint64(1)
        for _ in range(k):
            power *= _BASE
        for text in range(len(first) - 1):
            begin, end = first[text], first[text + 1]
            h = np.uint64(0)
            for i in range(begin, end):
                h = h * _BASE + hashes[i]
                if i >= begin + k:
                    h -= hashes[i - k] * power
                if i < begin + k - 1:
                    continue
                key = (h + np.uint64(k)) * _MIX
                key ^= key >> _SHIFT
                place = np.int64(key >> shift)
                if not filter_bits[place >> 3] >> (place & 7) & 1:
                    continue
                low, high = starts[place >> 4], starts[(place >> 4) + 1]
                while low < high and keys[low] < key:
                    low += 1
                if low < high and keys[low] == key:
                    if n < len(out):
                        out[n, 0], out[n, 1] = text, low
                    n += 1
    return n
