"""The decision: a record goes iff it is similar, at the threshold, to a record of lower rank that *stays*.

Records are taken by rank. Each is compared with the kept, eligible ones with which it shares a bucket, those with the
most shared bands first, then by rank; the first whose true Jaccard similarity reaches the threshold is what it is a
near duplicate of. Similarity is not transitive: where a ~ b ~ c and a, c are unlike, b goes and c stays, since b was
not kept. So no chain, and no header that long texts share, can eat a source.

Two bounds keep records that are all a little alike (100,000 filled-in forms) from costing a time that grows with the
square: a bucket remembers the first `MEMBERS` kept ones, and a record is compared with `PAIRS` others at most, those
whose sizes rule out the threshold not counted. Both depend on nothing but ranks, so the outcome is the same everywhere;
`Near.limited` says how many records stayed with candidates left to compare.

Cost: two sorted runs are merged, about 2 ns a shingle, and given up as soon as they cannot reach the threshold. Memory:
the files of `candidates.py`, mapped and given back every `TOUCHED` shingles, plus 12 bytes a record.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sheaf.console import Console, Silent
from sheaf.corpus.workspace import Workspace
from sheaf.files import disk_errors
from sheaf.kernel import kernel
from sheaf.prepare.near import candidates

MEMBERS = 128
PAIRS = 128
TOUCHED = 1 << 23  # shingles
_SLOT_BITS = 40


@dataclass(frozen=True, eq=False)
class Near:
    """of: int64 (n,), rank of the kept record that a record is similar to, or -1. similarity: float32 (n,), to it.

    compared: pairs whose similarity was computed. limited: records that were not compared with all their candidates.
    """

    of: NDArray[np.int64]
    similarity: NDArray[np.float32]
    compared: int
    limited: int


def decide(
    workspace: Workspace,
    live_shards: Sequence[str],
    shard: NDArray[np.int32],
    row: NDArray[np.int32],
    eligible: NDArray[np.bool_],
    threshold: float,
    console: Console | None = None,
) -> Near:
    """Near duplicates among n distinct records, given by rank (source priority, then id).

    shard (index into live_shards), row: int32 (n,), where each lies. eligible: bool (n,), whether it is kept by all
    other rules; the rest are neither dropped here nor compared with. threshold: in [0.5, 1]. The minhash stage must be
    done.
    """
    console = console or Silent()
    found = candidates.find(workspace, live_shards, shard, row, threshold, console)
    of, similarity = np.full(len(row), -1, np.int64), np.zeros(len(row), np.float32)
    told = np.zeros(2, np.int64)
    if len(found.rank):
        with console.stage("near: compare", len(found.rank), "records") as advance:
            _over_slots(found, workspace.near, np.asarray(eligible, np.bool_), threshold, of, similarity, told, advance)
    return Near(of, similarity, compared=int(told[0]), limited=int(told[1]))


def _over_slots(
    found: candidates.Candidates,
    scratch: Path,
    eligible: NDArray[np.bool_],
    threshold: float,
    of: NDArray[np.int64],
    similarity: NDArray[np.float32],
    told: NDArray[np.int64],
    advance: Callable[[int], None],
) -> None:
    member = _scratch(scratch, np.int64, len(found.bucket))
    filled = _scratch(scratch, np.int32, len(found.room) - 1)
    shared = _scratch(scratch, np.int16, len(found.rank))
    # Unsigned like shingles: numba then compiles one sort for both, which takes it a second.
    seen = np.empty(int(np.diff(found.first).max()) * MEMBERS, np.uint64)
    with found.runs.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        runs = np.frombuffer(mapping, np.uint64)
        try:
            slot = 0
            while slot < len(found.rank):
                before = slot
                slot = _greedy(
                    slot,
                    found.rank,
                    found.first,
                    found.bucket,
                    found.room,
                    found.run_first,
                    found.run_length,
                    runs,
                    eligible,
                    threshold,
                    member,
                    filled,
                    shared,
                    seen,
                    of,
                    similarity,
                    told,
                    MEMBERS,
                    PAIRS,
                    TOUCHED,
                )
                advance(slot - before)
                mapping.madvise(mmap.MADV_DONTNEED)  # resident pages of the file, not its contents
        finally:
            del runs  # a mapping with a view into it cannot be closed


def _scratch(folder: Path, dtype: DTypeLike, n: int) -> NDArray[np.generic]:
    """Zeros in a file without a name. Space is taken first: a mapped write to a full disk would kill the process."""
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as f:
        os.posix_fallocate(f.fileno(), 0, n * np.dtype(dtype).itemsize)
        return np.asarray(np.memmap(f, dtype, "r+", shape=(n,)))


@kernel
def _needed(a: int, b: int, threshold: float) -> int:
    """The least size of the intersection with which sets of a and b elements reach the threshold."""
    need = int(threshold * (a + b) / (1.0 + threshold))  # right but for rounding: then one further
    while need > 0 and (need - 1) / (a + b - need + 1) >= threshold:
        need -= 1
    while need / (a + b - need) < threshold:
        need += 1
    return need


@kernel
def _common(runs: NDArray[np.uint64], i: int, i_end: int, j: int, j_end: int, need: int) -> int:
    """Size of the intersection of two ascending runs, or something below `need` if it is below that."""
    common = 0
    # Branches on which is smaller would be mispredicted every other time: all three are computed.
    while i < i_end and j < j_end and common + i_end - i >= need and common + j_end - j >= need:
        a, b = runs[i], runs[j]
        i += a <= b
        j += b <= a
        common += a == b
    return common


@kernel
def _greedy(
    slot: int,
    rank: NDArray[np.int64],
    first: NDArray[np.int64],
    bucket: NDArray[np.int64],
    room: NDArray[np.int64],
    run_first: NDArray[np.int64],
    run_length: NDArray[np.int64],
    runs: NDArray[np.uint64],
    eligible: NDArray[np.bool_],
    threshold: float,
    member: NDArray[np.int64],
    filled: NDArray[np.int32],
    shared: NDArray[np.int16],
    seen: NDArray[np.uint64],
    of: NDArray[np.int64],
    similarity: NDArray[np.float32],
    told: NDArray[np.int64],
    most_members: int,
    most_pairs: int,
    most_touched: int,
) -> int:
    """Decide from this slot on until many shingles were touched; returns the next slot.

    member[room[q] + i], i < min(filled[q], most_members): the kept slots of bucket q. shared: zeros between slots.
    """
    touched = 0
    while slot < len(rank) and touched < most_touched:
        if not eligible[rank[slot]]:
            slot += 1
            continue
        n, limited = 0, False
        for e in range(first[slot], first[slot + 1]):
            q = bucket[e]
            limited |= filled[q] > most_members
            for m in range(room[q], room[q] + min(filled[q], most_members)):
                other = member[m]
                if shared[other] == 0:
                    seen[n] = other
                    n += 1
                shared[other] += 1
        for i in range(n):
            other = np.int64(seen[i])
            seen[i] = np.uint64((np.int64(0x7FFF - shared[other]) << _SLOT_BITS) | other)
            shared[other] = 0
        if n > 1:
            seen[:n].sort()
        size, start = run_length[slot], run_first[slot]
        compared, kept = 0, True
        for i in range(n):
            other = np.int64(seen[i]) & ((1 << _SLOT_BITS) - 1)
            need = _needed(size, run_length[other], threshold)
            if need > min(size, run_length[other]):
                continue
            if compared == most_pairs:
                limited = True
                break
            compared += 1
            begin, end = run_first[other], run_first[other] + run_length[other]
            common = _common(runs, start, start + size, begin, end, need)
            touched += size + run_length[other]
            if common >= need:
                of[rank[slot]] = rank[other]
                similarity[rank[slot]] = common / (size + run_length[other] - common)
                kept = False
                break
        told[0] += compared
        if kept:
            told[1] += limited
            for e in range(first[slot], first[slot + 1]):
                q = bucket[e]
                if filled[q] < most_members:
                    member[room[q] + filled[q]] = slot
                filled[q] += 1
        slot += 1
    return slot
