"""The live items of a version: each once, where its rows are, and what the listing said of it.

Costs memory per item, not per record. An item that lies in several shards (a long one) is one item here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus import shards
from sheaf.corpus.columns import Array
from sheaf.corpus.forgotten import REASON as FORGOTTEN
from sheaf.corpus.schema import QUARANTINE
from sheaf.corpus.workspace import Workspace
from sheaf.prepare.known import known
from sheaf.sources.base import Refusal

_SUMS = ("size", "structure_bytes", "record_bytes", "quarantined_bytes", "records", "quarantined")


@dataclass(frozen=True)
class LiveItems:
    """table: one row per live item, as in items.parquet, and `shard` with its regions. source: int32 (items,).
    place: int64 (items,), rank by (source, path), equal where these are equal. of_row: for each shard, int64 by row of
    its items: the live item's number, or -1.
    """

    table: pa.Table
    source: Array
    place: Array
    of_row: list[Array]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def occurrences(self) -> int:
        return int(np.sum(self.table["records"].to_numpy()))


def live_items(
    workspace: Workspace, live_shards: Sequence[str], live_keys: set[bytes], names: Sequence[str]
) -> LiveItems:
    rows = known(workspace, live_keys, live_shards).rows
    tables: list[pa.Table] = []
    for number, shard in enumerate(live_shards):
        table = shards.read(workspace.shard(shard), "items").take(pa.array(rows.get(shard, []), pa.int64()))
        tables.append(table.append_column("shard", pa.array(np.full(len(table), number, np.int32))))
    table = pa.concat_tables(tables).combine_chunks()
    row = np.concatenate([np.array(rows.get(shard, []), np.int64) for shard in live_shards])
    live, head = _numbers(table)
    items = table.filter(pa.array(head))
    for name in _SUMS:
        total = np.zeros(len(items), np.int64)
        np.add.at(total, live, table[name].to_numpy())
        items = items.set_column(items.schema.get_field_index(name), name, pa.array(total))
    items = items.combine_chunks()
    source = pc.index_in(items["source"], pa.array(list(names))).cast(pa.int32()).to_numpy()
    of_row = _by_shard(table["shard"].to_numpy(), row, live, len(live_shards))
    return LiveItems(items, source, _places(source, items["path"]), of_row)


def quarantined(
    workspace: Workspace,
    live_shards: Sequence[str],
    items: LiveItems,
    refusals: Iterable[Refusal],
    names: Sequence[str],
) -> pa.Table:
    """The regions of the live items that could not be read, and the items that could not be had."""
    shard, tables = items.table["shard"].to_numpy(), [_refused(refusals)]
    for number, name in enumerate(live_shards):
        regions = shards.read(workspace.shard(name), "quarantine")
        if len(regions):
            own = items.table.filter(pa.array(shard == number))
            tables.append(regions.filter(pc.is_in(_versions(regions), _versions(own))))
    return by_source(pa.concat_tables(tables), names)


def by_source(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Sorted by source in the recipe's order, then path, member and locator."""
    rank = pc.index_in(table["source"], pa.array(list(names)))
    extra = [name for name in ("member", "locator") if name in table.column_names]
    keyed = table.append_column("rank", rank)
    order = pc.sort_indices(keyed, sort_keys=[(k, "ascending") for k in ("rank", "path", *extra)])
    return table.take(order)


def _numbers(table: pa.Table) -> tuple[Array, Array]:
    """The live item of each part, and which parts are the first of theirs."""
    keys, head = shards.id_bytes(table["key"]), table["part"].to_numpy() == 0
    live = np.cumsum(head) - 1
    later = np.flatnonzero(~head)
    if len(later):
        line = dict(zip(keys[head].tolist(), live[head].tolist(), strict=True))
        live[later] = [line[key] for key in keys[later].tolist()]
    return live, head


def _by_shard(shard: Array, row: Array, live: Array, n_shards: int) -> list[Array]:
    bounds = np.searchsorted(shard, np.arange(n_shards + 1))
    result: list[Array] = []
    for start, end in pairwise(bounds.tolist()):
        numbers = np.full(int(row[end - 1]) + 1 if end > start else 0, -1, np.int64)
        numbers[row[start:end]] = live[start:end]
        result.append(numbers)
    return result


def _places(source: Array, path: pa.ChunkedArray) -> Array:
    keys = pa.table({"source": pa.array(source), "path": path})
    order = pc.sort_indices(keys, sort_keys=[("source", "ascending"), ("path", "ascending")])
    at = order.to_numpy()
    sorted_path = path.take(order).combine_chunks()
    differs = pc.not_equal(sorted_path[1:], sorted_path[:-1]).to_numpy(zero_copy_only=False)
    place = np.zeros(len(at), np.int64)
    place[at[1:]] = np.cumsum(differs | (np.diff(source[at]) != 0))
    return place


def _versions(table: pa.Table) -> pa.ChunkedArray:
    """One string for (source, path, version), different where they are: lengths go first."""
    parts = [table[name] for name in ("source", "path", "version")]
    lengths = [pc.binary_length(part).cast(pa.string()) for part in parts[:2]]
    return pc.binary_join_element_wise(*lengths, *parts, ":")


def _refused(refusals: Iterable[Refusal]) -> pa.Table:
    rows = [
        {
            **{"source": r.source, "path": r.path, "uri": r.uri, "version": "", "member": "", "locator": "{}"},
            **{"bytes": r.size, "reason": r.reason, "detail": r.detail},
        }
        for r in refusals
        if r.reason != FORGOTTEN
    ]
    return pa.Table.from_pylist(rows, schema=QUARANTINE)
