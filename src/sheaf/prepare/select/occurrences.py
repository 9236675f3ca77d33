"""All live occurrences of records, sorted by (id, source, path, member, locator), a range of ids at a time.

Ids are hashes, so equal ranges of them hold about as many occurrences. Every shard's rows are sorted by id: each shard
is gone through once and its live occurrences are laid down in the order they have, range by range; a range is then a
piece of each of these files. Memory: one shard's origins, then one range (more only where one record alone occurs more
often than that). What comes out does not depend on how many ranges there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.console import Console
from sheaf.corpus import shards
from sheaf.corpus.columns import Array
from sheaf.corpus.workspace import Workspace
from sheaf.prepare.select.items import LiveItems

RANGE = 250_000  # occurrences held at once, about 150 bytes each
_FIELDS = ("item", "member", "locator", "bytes")


@dataclass(frozen=True)
class Occurrences:
    """files: one per shard, with a batch for each range. rows: of each shard's records."""

    files: list[Path]
    ranges: int
    rows: list[int]

    def range(self, number: int) -> pa.Table:
        """Sorted rows {id, shard, row, live (number of the item), place, member, locator, bytes}."""
        parts: list[pa.Table] = []
        for shard, file in enumerate(self.files):
            with pa.OSFile(str(file)) as f, pa.ipc.open_file(f) as opened:
                part = pa.Table.from_batches([opened.get_batch(number)])
            parts.append(part.append_column("shard", pa.array(np.full(len(part), shard, np.int32))))
        return _sorted(pa.concat_tables(parts).combine_chunks())


def lay_down(
    workspace: Workspace,
    live_shards: Sequence[str],
    items: LiveItems,
    folder: Path,
    console: Console,
    ranges: int | None = None,
) -> Occurrences:
    """ranges: how many, if not as many as keep a range at RANGE occurrences."""
    n = ranges or max(-(-items.occurrences // RANGE), 1)
    edges = np.array([(i << 64) // n for i in range(1, n)], np.uint64)
    files, rows = [folder / f"{number}.arrow" for number in range(len(live_shards))], [0] * len(live_shards)
    with console.stage("gather", len(live_shards), "shards") as advance:
        for number, shard in enumerate(live_shards):
            table, rows[number] = _live_in(workspace, shard, items, number)
            inner = np.searchsorted(leading(shards.id_bytes(table["id"])), edges)
            with pa.OSFile(str(files[number]), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
                for start, stop in pairwise([0, *inner.tolist(), len(table)]):
                    writer.write_batch(table.slice(start, stop - start))
            advance(1)
    return Occurrences(files, n, rows)


def leading(ids: Array) -> Array:
    """The first eight bytes of each id as a number: uint64, in the order of the ids."""
    first = ids.view(np.uint8).reshape(-1, 16)[:, :8]
    return np.ascontiguousarray(first).view(">u8").ravel().astype(np.uint64)


def run_starts(column: Array) -> Array:
    """The first row of each run of equal values: int64."""
    if not len(column):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.append(True, column[1:] != column[:-1])).astype(np.int64)


def _live_in(workspace: Workspace, shard: str, items: LiveItems, number: int) -> tuple[pa.RecordBatch, int]:
    """The live occurrences of a shard, sorted by id, and how many records it has."""
    table = shards.read(workspace.shard(shard), "records", ["id", *(f"origins.list.element.{f}" for f in _FIELDS)])
    origins = table["origins"].combine_chunks()
    row, flat = pc.list_parent_indices(origins), origins.flatten()
    item, of_row = flat.field("item").to_numpy(), items.of_row[number]
    live = np.full(len(item), -1, np.int64)
    inside = item < len(of_row)
    live[inside] = of_row[item[inside]]
    occurrences = pa.record_batch(
        {
            "id": table["id"].combine_chunks().take(row),
            "row": row.cast(pa.int32()),
            "live": pa.array(live.astype(np.int32)),
            "place": pa.array(items.place[np.maximum(live, 0)] if len(items) else live),
            **{name: flat.field(name) for name in ("member", "locator", "bytes")},
        }
    )
    return occurrences.filter(pa.array(live >= 0)), len(table)


def _sorted(table: pa.Table) -> pa.Table:
    """Nearly all ids differ in their first half: only where they do not are the other columns looked at."""
    lead = leading(shards.id_bytes(table["id"]))
    order = np.argsort(lead, kind="stable")
    starts = run_starts(lead[order])
    lengths = np.diff(np.append(starts, len(lead)))
    doubtful = np.repeat(lengths > 1, lengths)
    if doubtful.any():
        at = order[doubtful]
        some = table.select(["id", "place", "member", "locator"]).take(pa.array(at))
        some = some.set_column(0, "id", some["id"].cast(pa.binary()))
        keys = [(name, "ascending") for name in some.column_names]
        order[doubtful] = at[pc.sort_indices(some, sort_keys=keys).to_numpy()]
    return table.take(pa.array(order)).combine_chunks()
