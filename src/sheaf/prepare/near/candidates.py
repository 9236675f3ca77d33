"""Candidates: the records that share a bucket with another, and their sets of shingles, so that pairs can be verified.

Found once for a set of records and kept in the workspace, under a digest of what they depend on: the shards, which rows
of them, and the stage of the keys. What the recipe's filters say is not part of it, so a changed filter decides anew in
seconds. Texts of candidates alone are read again, row group by row group; sets lie on disk as sorted runs of 8 bytes a
shingle, about 1.3 times the text of the candidates.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from sheaf.console import Console
from sheaf.corpus import shards
from sheaf.corpus.columns import Appended
from sheaf.corpus.workspace import Workspace
from sheaf.errors import CorruptStore
from sheaf.files import checked, digest_of, present, read_done, task_folder
from sheaf.prepare import words
from sheaf.prepare.near import buckets, minhash, shingles

VERSION = 1


@dataclass(frozen=True, eq=False)
class Candidates:
    """Slot i is the record of rank[i], ascending, in buckets bucket[first[i] : first[i + 1]]; its set of shingles is
    runs[run_first[i] : run_first[i] + run_length[i]] of the file `runs`, uint64 ascending. room: int64 (buckets + 1,),
    running sizes of the buckets.
    """

    rank: NDArray[np.int64]
    first: NDArray[np.int64]
    bucket: NDArray[np.int64]
    room: NDArray[np.int64]
    run_first: NDArray[np.int64]
    run_length: NDArray[np.int64]
    runs: Path


def find(
    workspace: Workspace,
    live_shards: Sequence[str],
    shard: NDArray[np.int32],
    row: NDArray[np.int32],
    threshold: float,
    console: Console,
) -> Candidates:
    """shard (index into live_shards) and row of each distinct record, by rank. The minhash stage must be done."""
    stage = minhash.stage(threshold)
    folder = workspace.near / _digest(stage, live_shards, shard, row)
    if read_done(folder) is None:
        with (
            task_folder(folder, task="near") as out,
            console.stage("near: candidates", len(live_shards), "shards") as advance,
        ):
            buckets.write(out, workspace, live_shards, shard, row, stage)
            _write_runs(out, workspace, live_shards, shard, row, advance)
        _remove_others(folder)
    columns = {name: _column(folder / name) for name in ("rank", "first", "bucket", "room", "run_first", "run_length")}
    return Candidates(**columns, runs=checked(folder / "runs"))


def _digest(stage: str, live_shards: Sequence[str], shard: NDArray[np.int32], row: NDArray[np.int32]) -> str:
    rows = hashlib.blake2b(digest_size=16)
    for column in (shard, row):
        rows.update(np.ascontiguousarray(column, "<i4").data)
    return digest_of("near", VERSION, shingles.WORDS, stage, *live_shards, rows.digest())


def _remove_others(folder: Path) -> None:
    """Candidates of earlier sets of records: they are large, and quickly found again."""
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _column(path: Path, dtype: DTypeLike = np.int64) -> NDArray[np.int64]:
    """Mapped. Plain arrays over the maps: indexing a np.memmap object costs microseconds of Python each time."""
    path = checked(path)
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.zeros(0, dtype)


def _write_runs(
    out: Path,
    workspace: Workspace,
    live_shards: Sequence[str],
    shard: NDArray[np.int32],
    row: NDArray[np.int32],
    advance: Callable[[int], None],
) -> None:
    rank = np.fromfile(out / "rank", np.int64)
    first, length = np.zeros(len(rank), np.int64), np.zeros(len(rank), np.int64)
    runs = Appended(out / "runs", np.uint64)
    written = 0
    slots_by_shard = np.argsort(shard[rank], kind="stable")
    bounds = np.searchsorted(shard[rank[slots_by_shard]], np.arange(len(live_shards) + 1))
    for number, name in enumerate(live_shards):
        slots = slots_by_shard[bounds[number] : bounds[number + 1]]
        slots = slots[np.argsort(row[rank[slots]])]
        for some, texts in _texts(workspace.shard(name), slots, row[rank[slots]]):
            found, starts = shingles.sets(texts)
            first[some], length[some] = written + starts[:-1], np.diff(starts)
            runs.append(found)
            written += len(found)
        advance(1)
    runs.mapped()
    first.tofile(out / "run_first")
    length.tofile(out / "run_length")


def _texts(
    shard: Path, slots: NDArray[np.int64], rows: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int64], pa.LargeStringArray]]:
    """Slots and their texts, row group by row group. rows: ascending."""
    if not len(slots):
        return
    path = present(shard / "records.parquet")
    try:  # pages have checksums: what is not read need not be digested
        file = pq.ParquetFile(path, page_checksum_verification=True)
        group = rows // shards.ROW_GROUP
        for g in np.unique(group).tolist():
            here = group == g
            texts = file.read_row_group(g, columns=["text"])["text"].combine_chunks()
            texts = texts.take(pa.array(rows[here] % shards.ROW_GROUP))
            for start, stop in words.pieces(texts):
                yield slots[here][start:stop], texts.slice(start, stop - start)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStore(
            "a file of the workspace cannot be read",
            where=str(path),
            why=str(error),
            fix=f"delete {shard} and prepare again",
        ) from error
