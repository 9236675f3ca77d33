"""From sorted occurrences to distinct records: the first occurrence speaks for the record, the others repeat it.

Range by range in the order of ids, columns of occurrences and records go to disk; then records get their rank (by
source, id) and their columns are laid down in that order. The digest of what was seen where is made on the way, over
columns as if they had never been cut into ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus import shards
from sheaf.corpus.columns import Appended, Array, new_array, release
from sheaf.corpus.decided import rows_of
from sheaf.prepare.select.items import LiveItems
from sheaf.prepare.select.occurrences import Occurrences, run_starts

_RECORD = {"id": "V16", "source": "i4", "shard": "i4", "row": "i4", "occurrences": "i4"}


@dataclass(frozen=True)
class Piece:
    """Some occurrences, sorted by id. live: int32, item of each. size: int64, its bytes. speaks: bool. rank: int64, of
    the record of each.
    """

    live: Array
    size: Array
    speaks: Array
    rank: Array


@dataclass(frozen=True)
class Records:
    """columns: by name, in rank order (as in Decided). seen: digest of the occurrences, without what became of them."""

    columns: dict[str, Array]
    rank_at: Array
    first_row: Array
    first: Array
    seen: str
    _live: Array
    _size: Array
    _rank: Array  # of the record of each number; numbers are in the order of ids
    _cuts: list[tuple[int, int]]  # records and occurrences before each range

    def __len__(self) -> int:
        return len(self.columns["id"])

    def rows_of(self, shard: int) -> tuple[Array, Array]:
        """(rows, ranks) of the records for which this shard speaks, rows ascending."""
        return rows_of(self.rank_at, self.first_row, shard)

    def pieces(self) -> Iterator[Piece]:
        """All occurrences, range by range."""
        for (record, first), (next_record, last) in pairwise(self._cuts):
            rank = self._rank[record:next_record]
            times = self.columns["occurrences"][rank]
            speaks = np.zeros(last - first, bool)
            speaks[np.cumsum(times) - times] = True
            yield Piece(self._live[first:last], self._size[first:last], speaks, np.repeat(rank, times))
            release(self._rank, self._live, self._size, *self.columns.values())


def fold(occurrences: Occurrences, items: LiveItems, sources: int, folder: Path) -> Records:
    raw = {name: Appended(folder / f"by-id.{name}", dtype) for name, dtype in _RECORD.items()}
    live, size = Appended(folder / "live", "i4"), Appended(folder / "size", "i8")
    seen, cuts, counts = _Seen(items), [(0, 0)], np.zeros(sources, np.int64)
    for number in range(occurrences.ranges):
        table = occurrences.range(number)
        if not len(table):
            continue
        ids, at = shards.id_bytes(table["id"]), table["live"].to_numpy()
        starts = run_starts(ids)
        source = items.source[at[starts]]
        columns = {
            "id": ids[starts],
            "source": source,
            **{name: table[name].to_numpy()[starts] for name in ("shard", "row")},
            "occurrences": np.diff(np.append(starts, len(ids))),
        }
        for name, column in columns.items():
            raw[name].append(column)
        live.append(at)
        size.append(table["bytes"].to_numpy())
        seen.update(table)
        counts += np.bincount(source, minlength=sources)
        cuts.append((cuts[-1][0] + len(starts), cuts[-1][1] + len(ids)))
    by_id = {name: column.mapped() for name, column in raw.items()}
    first = np.append(0, np.cumsum(counts))
    rank = _ranks(by_id["source"], first, [record for record, _ in cuts], folder)
    first_row = np.append(0, np.cumsum(np.array(occurrences.rows, np.int64)))
    columns = _in_rank_order(by_id, rank, cuts, folder)
    rank_at = _by_place(by_id, rank, cuts, first_row, folder)
    return Records(columns, rank_at, first_row, first, seen.digest(), live.mapped(), size.mapped(), rank, cuts)


def _ranks(source: Array, first: Array, cuts: list[int], folder: Path) -> Array:
    """The rank of each record, these being in the order of ids: a counting sort by source."""
    rank, cursor = new_array(folder / "rank.npy", "i8", len(source)), first[:-1].copy()
    for start, stop in pairwise(cuts):
        here = source[start:stop]
        order, counts = np.argsort(here, kind="stable"), np.bincount(here, minlength=len(cursor))
        before = np.cumsum(counts) - counts
        rank[start + order] = np.repeat(cursor - before, counts) + np.arange(stop - start)
        cursor += counts
        release(rank, source)
    return rank


def _in_rank_order(by_id: dict[str, Array], rank: Array, cuts: list[tuple[int, int]], folder: Path) -> dict[str, Array]:
    columns = {name: new_array(folder / f"{name}.npy", dtype, len(rank)) for name, dtype in _RECORD.items()}
    for (start, _), (stop, _) in pairwise(cuts):
        for name, column in columns.items():
            column[rank[start:stop]] = by_id[name][start:stop]
        release(rank, *by_id.values(), *columns.values())
    return columns


def _by_place(
    by_id: dict[str, Array], rank: Array, cuts: list[tuple[int, int]], first_row: Array, folder: Path
) -> Array:
    """Which record each row of each shard speaks for, by rank."""
    rank_at = new_array(folder / "rank-at.npy", "i8", int(first_row[-1]), fill=-1)
    for (start, _), (stop, _) in pairwise(cuts):
        rank_at[first_row[by_id["shard"][start:stop]] + by_id["row"][start:stop]] = rank[start:stop]
        release(rank_at, rank, *by_id.values())
    return rank_at


class _Seen:
    """Digest of the sorted occurrences: free of machine paths, versions, times, shards and ranges."""

    def __init__(self, items: LiveItems) -> None:
        self._items, self._path = items, items.table["path"]
        self._ids, self._sources = (hashlib.blake2b(digest_size=16) for _ in range(2))
        self._strings = {name: HashedStrings() for name in ("path", "member", "locator")}

    def update(self, table: pa.Table) -> None:
        live = table["live"]
        self._ids.update(shards.id_bytes(table["id"]).tobytes())
        self._sources.update(self._items.source[live.to_numpy()].astype("<i4").tobytes())
        self._strings["path"].update(self._path.take(live))
        for name in ("member", "locator"):
            self._strings[name].update(table[name])

    def digest(self) -> str:
        strings = [self._strings[name].digest() for name in ("path", "member", "locator")]
        return "".join([self._ids.hexdigest(), self._sources.hexdigest(), *strings])


class HashedStrings:
    """Digest of a column of strings that comes in pieces: of all lengths, and of all bytes."""

    def __init__(self) -> None:
        self._lengths, self._bytes = (hashlib.blake2b(digest_size=16) for _ in range(2))

    def update(self, column: pa.ChunkedArray) -> None:
        self._lengths.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
        for chunk in column.chunks:
            offsets, data = chunk.buffers()[1:]
            if len(chunk) and data is not None:
                ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
                self._bytes.update(memoryview(data)[ends[0] : ends[-1]])

    def digest(self) -> str:
        return self._lengths.hexdigest() + self._bytes.hexdigest()
