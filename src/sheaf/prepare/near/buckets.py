"""Buckets: which records share a band key with another, found by sorting files.

Band after band, (key, rank) pairs are spread over temporary files by the key's upper bits, each file is sorted in
memory, and every key that two or more records have becomes a bucket. Pairs (rank, bucket) go into files by rank, which
are sorted likewise. So memory is that of one file, `_PARTITION` bytes times five, however many records there are, plus
16 bytes a record for where they lie. Time O(n log n): about 3 µs a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.columns import Appended
from sheaf.corpus.workspace import Workspace
from sheaf.prepare.near import minhash

_PARTITION = 1 << 23  # bytes that a file should have
_PAIR = np.dtype([("key", "<u8"), ("value", "<i8")])


def write(
    out: Path,
    workspace: Workspace,
    live_shards: Sequence[str],
    shard: NDArray[np.int32],
    row: NDArray[np.int32],
    stage: str,
) -> None:
    """Columns in folder `out`: rank (int64, ascending; of the records that are in some bucket: *slots*), first (int64,
    slots + 1) into bucket (int64, one bucket after another for each slot), room (int64, buckets + 1: running sizes).
    """
    where = _rows_with_words(workspace, live_shards, shard, row, stage)
    total = sum(len(ranks) for ranks in where)
    bands = minhash.read_keys(workspace, live_shards[0], stage).shape[0] if live_shards else 0
    room = Appended(out / "room", np.int64)
    room.append(np.zeros(1, np.int64))
    members, buckets = 0, 0
    by_rank = _Partitions(out, "by-rank", total * bands)
    for band in range(bands):
        by_key = _Partitions(out, "by-key", total)
        for name, ranks in zip(live_shards, where, strict=True):
            keys = minhash.read_keys(workspace, name, stage)[band][row[ranks]]
            by_key.add((keys >> np.uint64(32)).astype(np.int64) * by_key.files >> 32, keys, ranks)
        for pairs in by_key.sorted():
            ranks, sizes = _groups(pairs)
            number = np.arange(buckets, buckets + len(sizes))
            by_rank.add(ranks * by_rank.files // len(row), ranks, np.repeat(number, sizes))
            room.append(members + np.cumsum(sizes))
            members, buckets = members + len(ranks), buckets + len(sizes)
    room.mapped()
    _write_slots(out, by_rank)


def _rows_with_words(
    workspace: Workspace, live_shards: Sequence[str], shard: NDArray[np.int32], row: NDArray[np.int32], stage: str
) -> list[NDArray[np.int64]]:
    """For each shard the ranks, ascending, of its records that have any words."""
    order = np.argsort(shard, kind="stable")
    bounds = np.searchsorted(shard[order], np.arange(len(live_shards) + 1))
    return [
        ranks[minhash.read_counts(workspace, name, stage)[row[ranks]] > 0]
        for name, ranks in zip(live_shards, (order[a:b] for a, b in pairwise(bounds)), strict=True)
    ]


def _groups(pairs: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values of all keys that two pairs or more have, key after key; and how many each has."""
    key = pairs["key"]
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    sizes = np.diff(np.append(starts, len(key)))
    shared = sizes > 1
    return pairs["value"][np.repeat(shared, sizes)], sizes[shared]


def _write_slots(out: Path, by_rank: _Partitions) -> None:
    rank, bucket = Appended(out / "rank", np.int64), Appended(out / "bucket", np.int64)
    first = Appended(out / "first", np.int64)
    first.append(np.zeros(1, np.int64))
    written = 0
    for pairs in by_rank.sorted():
        starts = np.flatnonzero(np.append(True, pairs["key"][1:] != pairs["key"][:-1]))
        rank.append(pairs["key"][starts])
        first.append(written + np.append(starts[1:], len(pairs)))
        bucket.append(pairs["value"])
        written += len(pairs)
    for column in (rank, bucket, first):
        column.mapped()


class _Partitions:
    """Pairs (key, value) spread over files by the caller, then read file by file, each sorted by key; pairs of equal
    keys stay in the order in which they came."""

    def __init__(self, folder: Path, name: str, expected: int) -> None:
        """expected: pairs, at most; it decides the number of `files`."""
        self.files = max(-(-expected * _PAIR.itemsize // _PARTITION), 1)
        self._paths = [folder / f"{name}-{i}" for i in range(self.files)]

    def add(self, file: NDArray[np.int64], key: NDArray[Any], value: NDArray[np.int64]) -> None:
        """file: 0 ≤ file < files, the file of each pair."""
        pairs = np.empty(len(key), _PAIR)
        order = np.argsort(file, kind="stable")
        pairs["key"], pairs["value"] = key[order], value[order]
        bounds = np.searchsorted(file[order], np.arange(self.files + 1))
        for path, (start, end) in zip(self._paths, pairwise(bounds.tolist()), strict=True):
            if end > start:
                with path.open("ab") as f:  # opened for each piece: there may be more files than a process may open
                    f.write(pairs[start:end].data)

    def sorted(self) -> Iterator[NDArray[np.void]]:
        for path in self._paths:
            if path.exists():
                pairs = np.fromfile(path, _PAIR)
                path.unlink()
                yield pairs[np.argsort(pairs["key"], kind="stable")]
