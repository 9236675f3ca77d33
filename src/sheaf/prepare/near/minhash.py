"""The MinHash stage: for every record a few band keys; records that are similar are likely to share one.

The least value of a set under a random permutation is the same for two sets with probability J, their Jaccard
similarity (Broder 1997). A band is `rows` such values together; two records of similarity J share at least one of
`bands` with probability 1 − (1 − J^rows)^bands. Both are chosen by the threshold, so that right at it at most 0.8% are
missed: 16 × 6 at 0.8. What this finds too much, the true similarity sorts out later (`greedy.py`). Thresholds from 0.8
up to 0.9 share their keys, and so on: between them a changed one hashes nothing again.

A permutation is x → a·x + b mod 2^32, a odd, on the upper half of a shingle's 64-bit hash; the loop over a record's
shingles is the inner one, so that LLVM turns it into SIMD minima. Cost: mostly that of finding the words; some 100 MB/s
a core from Parquet to keys (`bench/near.py`). On disk 8 bytes a band and record.

keys.npy: uint64 (bands, rows of the shard), row-aligned with the shard's records; shingles.npy: int32 (rows of the
shard,), how many shingles a record has, repeats included. A record of none (no words) has no keys.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheaf.corpus.columns import save_array
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import checked, task_folder
from sheaf.kernel import kernel
from sheaf.prepare import words
from sheaf.prepare.near import shingles

VERSION = 1  # raise it whenever the same text would get other keys
TEXTS = 1024  # read at once
_SHAPES = ((0.9, 12, 10), (0.8, 16, 6), (0.7, 27, 5), (0.6, 35, 4), (0.5, 37, 3))  # from a threshold on: bands, rows
_BLOCK = 4096  # shingles that stay in the first-level cache while all permutations pass over them
_MIX_1, _MIX_2, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)


def shape(threshold: float) -> tuple[int, int]:
    """(bands, rows) for a threshold in [0.5, 1]."""
    return next((bands, rows) for least, bands, rows in _SHAPES if threshold >= least)


def stage(threshold: float) -> str:
    """Name of the stage: thresholds that need the same keys have the same."""
    bands, rows = shape(threshold)
    return f"minhash-{VERSION}-{bands}x{rows}"


def task(workspace: Workspace, shard: str, threshold: float) -> Task:
    arguments = {"workspace": workspace.where, "shard": shard, "threshold": threshold}
    return Task("sheaf.prepare.near.minhash:hash_shard", arguments, label=f"minhash {shard[:8]}")


def hash_shard(workspace: str, shard: str, threshold: float) -> Json:
    store = Workspace.at(workspace)
    records = pq.ParquetFile(checked(store.shard(shard) / "records.parquet"))
    bands, rows = shape(threshold)
    keys = np.zeros((bands, records.metadata.num_rows), np.uint64)
    counts = np.zeros(records.metadata.num_rows, np.int32)
    row = 0
    for batch in records.iter_batches(TEXTS, columns=["text"]):
        for start, stop in words.pieces(batch["text"]):
            here = slice(row + start, row + stop)
            keys[:, here], counts[here] = band_keys(batch["text"].slice(start, stop - start), bands, rows)
        row += len(batch)
    with task_folder(store.scores(shard, stage(threshold)), stage="minhash") as out:
        save_array(out / "keys.npy", keys)
        save_array(out / "shingles.npy", counts)
    return {"records": row}


def read_keys(workspace: Workspace, shard: str, name: str) -> NDArray[np.uint64]:
    """uint64 (bands, rows of the shard), mapped. name: of the stage."""
    return np.load(checked(workspace.scores(shard, name) / "keys.npy"), mmap_mode="r", allow_pickle=False)


def read_counts(workspace: Workspace, shard: str, name: str) -> NDArray[np.int32]:
    """int32 (rows of the shard,), shingles of each record. name: of the stage."""
    return np.load(checked(workspace.scores(shard, name) / "shingles.npy"), mmap_mode="r", allow_pickle=False)


def band_keys(texts: pa.LargeStringArray, bands: int, rows: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """uint64 (bands, texts), 0 for a text without words; and int32 (texts,), its shingles, repeats included."""
    hashes, starts = shingles.of(texts)
    upper = (hashes >> np.uint64(32)).astype(np.uint32)
    keys = np.zeros((bands, len(texts)), np.uint64)
    _least(upper, starts, *_permutations(bands * rows), rows, keys)
    return keys, np.diff(starts).astype(np.int32)


def _permutations(n: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(a, b) of each: successive outputs of SplitMix64 (Steele, Lea, Flood 2014), so the same for ever."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)).astype(np.uint32) | np.uint32(1), z.astype(np.uint32)


@kernel
def _mixed(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _SHIFT)) * _MIX_1
    h = (h ^ (h >> _SHIFT)) * _MIX_2
    return h ^ (h >> _SHIFT)


@kernel
def _least(
    values: NDArray[np.uint32],
    starts: NDArray[np.int64],
    factor: NDArray[np.uint32],
    offset: NDArray[np.uint32],
    rows: int,
    keys: NDArray[np.uint64],
) -> None:
    """Fill the keys of every text that has shingles."""
    least = np.empty(len(factor), np.uint32)
    for text in range(len(starts) - 1):
        start, end = starts[text], starts[text + 1]
        if start == end:
            continue
        least[:] = np.uint32(0xFFFFFFFF)
        for low in range(start, end, _BLOCK):
            block = values[low : min(low + _BLOCK, end)]
            for p in range(len(factor)):
                a, b, found = factor[p], offset[p], least[p]
                for i in range(len(block)):
                    value = np.uint32(block[i] * a + b)
                    found = min(found, value)
                least[p] = found
        for band in range(len(keys)):
            h = np.uint64(band + 1)
            for p in range(band * rows, (band + 1) * rows):
                h = _mixed(h ^ np.uint64(least[p]))
            keys[band, text] = h
