"""What was taken out for good: the list of it, and shards without it.

`forgotten.json` in the workspace has one entry for every `sheaf forget`: names of sources, digests of items (their
names would be traces), ids of records, and the shards that were written anew. It binds all later runs: a forgotten item
is not opened again, a forgotten record that turns up elsewhere is blanked before it is stored. Whoever forgot by
mistake removes the entry, and prepares again.

A shard is written anew without the rows of forgotten items; a forgotten record of another item keeps its row, which
its item's byte account needs, but no text, message, payload or meta. A shard's DONE names the records that are blank in
it: should one of them not be forgotten any more, the shard counts no longer, and its items are read again. Cost: one
shard in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus import shards
from sheaf.corpus.schema import ITEMS, QUARANTINE, RECORDS
from sheaf.corpus.workspace import Workspace
from sheaf.files import digest_json, digest_of, read_done, refreshed, task_folder, write_json

Json = dict[str, Any]
REASON = "forgotten"
_BLANK = {"text": "", "messages": "", "payload": b"", "meta": "{}"}


@dataclass(frozen=True)
class Forgotten:
    """sources: names. items: digests of (source, path). records: ids. replaced: shard → the one written anew."""

    sources: frozenset[str] = frozenset()
    items: frozenset[str] = frozenset()
    records: frozenset[bytes] = frozenset()
    replaced: Mapping[str, str] = field(default_factory=dict[str, str])

    def __bool__(self) -> bool:
        return bool(self.sources or self.items or self.records)

    def has_item(self, source: str, path: str) -> bool:
        return source in self.sources or (bool(self.items) and item_digest(source, path) in self.items)


def item_digest(source: str, path: str) -> str:
    return digest_of(repr((source, path)))


def entries(workspace: Workspace) -> list[Json]:
    """What `forgotten.json` holds, oldest first: {"sources", "items", "records", "replaced", …}."""
    try:
        return orjson.loads(refreshed(workspace.root / "forgotten.json").read_bytes())
    except FileNotFoundError:
        return []


def read(workspace: Workspace) -> Forgotten:
    """All entries together."""
    found = entries(workspace)
    replaced: dict[str, str] = {}
    for entry in found:
        replaced |= entry["replaced"]
    return Forgotten(
        sources=frozenset(name for entry in found for name in entry["sources"]),
        items=frozenset(item for entry in found for item in entry["items"]),
        records=frozenset(bytes.fromhex(record) for entry in found for record in entry["records"]),
        replaced=replaced,
    )


def add(workspace: Workspace, entry: Json) -> None:
    write_json(workspace.root / "forgotten.json", [*entries(workspace), entry])


def records_in(workspace: Workspace, shard: str, forgotten: Forgotten) -> set[bytes]:
    """Ids of the shard's records that have an origin in a forgotten item."""
    gone = _gone(shards.read(workspace.shard(shard), "items", ["source", "path"]), forgotten)
    if not gone.any():
        return set()
    table = shards.read(workspace.shard(shard), "records", ["id", "origins"])
    parent = pc.list_parent_indices(table["origins"]).combine_chunks().to_numpy()
    item = table["origins"].combine_chunks().flatten().field("item").to_numpy()
    return set(table["id"].take(pa.array(np.unique(parent[gone[item]]))).to_pylist())


def write_anew(workspace: Workspace, shard: str, forgotten: Forgotten) -> str:
    """Write the shard without what is forgotten; the new one's name, or the old one if it holds nothing of it."""
    tables = shards.ShardTables(*(shards.read(workspace.shard(shard), n) for n in ("records", "items", "quarantine")))
    gone = _gone(tables.items, forgotten)
    blank = _among(tables.records["id"], forgotten.records)
    if not gone.any() and not _any_left(tables.records, blank):
        return shard
    cleaned = without(tables, gone, forgotten.records)
    name = digest_json([REASON, shard, _content(cleaned)])
    if read_done(workspace.shard(name)) is None:
        before = frozenset(bytes.fromhex(record) for record in _blank_in(workspace, shard))
        told = blanks(cleaned.records, before | forgotten.records)
        with task_folder(workspace.shard(name), stage=REASON, items=len(cleaned.items), **told) as out:
            shards.write(cleaned, out)
    return name


def counts(workspace: Workspace, shard: str, forgotten: Forgotten) -> bool:
    """Whether items are still to be had from the shard: it was not replaced, and all that is blank is forgotten."""
    return shard not in forgotten.replaced and all(
        bytes.fromhex(record) in forgotten.records for record in _blank_in(workspace, shard)
    )


def blanks(records: pa.Table, ids: frozenset[bytes]) -> Json:
    """For a shard's DONE: which of its records are blank, if any. ids: those that are blanked wherever they are."""
    here = records["id"].filter(pa.array(_among(records["id"], ids))).unique().to_pylist()
    return {"blank": sorted(record.hex() for record in here)} if here else {}


def _blank_in(workspace: Workspace, shard: str) -> list[str]:
    return (read_done(workspace.shard(shard)) or {}).get("blank", [])


def blanked(records: pa.Table, ids: frozenset[bytes]) -> pa.Table:
    """The same rows; those with these ids without anything that was in them."""
    here = _among(records["id"], ids)
    if not here.any():
        return records
    mask = pa.array(here)
    for name, empty in _BLANK.items():
        column = records[name]
        cleared = pc.if_else(mask, pa.scalar(empty, column.type), column)
        records = records.set_column(records.schema.get_field_index(name), records.schema.field(name), cleared)
    return records


def without(tables: shards.ShardTables, gone: np.ndarray, ids: frozenset[bytes]) -> shards.ShardTables:
    """A shard's tables without some items (bool by row of items), and with the records of these ids blanked."""
    number = np.where(gone, -1, np.cumsum(~gone) - 1).astype(np.int32)
    records = blanked(_without_origins(tables.records, number), ids)
    items = tables.items.filter(pa.array(~gone))
    left = _names(tables.quarantine)
    lost = set(_names(tables.items.filter(pa.array(gone))))
    quarantine = tables.quarantine.filter(pa.array([name not in lost for name in left], pa.bool_()))
    return shards.ShardTables(records.cast(RECORDS), items.cast(ITEMS), quarantine.cast(QUARANTINE))


def _gone(items: pa.Table, forgotten: Forgotten) -> np.ndarray:
    names = zip(items["source"].to_pylist(), items["path"].to_pylist(), strict=True)
    return np.fromiter((forgotten.has_item(*name) for name in names), bool, len(items))


def _among(ids: pa.ChunkedArray, wanted: frozenset[bytes]) -> np.ndarray:
    if not wanted:
        return np.zeros(len(ids), bool)
    return pc.is_in(ids.combine_chunks(), pa.array(sorted(wanted), ids.type)).to_numpy(zero_copy_only=False)


def _any_left(records: pa.Table, here: np.ndarray) -> bool:
    """Whether any of these rows still has something in it."""
    rows = records.filter(pa.array(here))
    return any(
        pc.any(pc.not_equal(rows[name], pa.scalar(empty, rows[name].type))).as_py() for name, empty in _BLANK.items()
    )


def _without_origins(records: pa.Table, number: np.ndarray) -> pa.Table:
    """Rows that keep an origin. number: int32 by row of items, the item's new row or -1."""
    origins = records["origins"].combine_chunks()
    parent = pc.list_parent_indices(origins).to_numpy()
    flat = origins.flatten()
    item = number[flat.field("item").to_numpy()]
    stays = item >= 0
    kept = flat.filter(pa.array(stays))
    columns = [pa.array(item[stays]), *(kept.field(i) for i in range(1, kept.type.num_fields))]
    counts = np.bincount(parent[stays], minlength=len(records))
    struct = pa.StructArray.from_arrays(columns, fields=list(origins.type.value_type))
    rows = np.flatnonzero(counts)
    offsets = pa.array(np.append(0, np.cumsum(counts[rows])), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, struct, type=origins.type)
    left = records.take(pa.array(rows))
    return left.set_column(left.schema.get_field_index("origins"), left.schema.field("origins"), lists)


def _names(table: pa.Table) -> Sequence[tuple[str, str]]:
    return list(zip(table["source"].to_pylist(), table["path"].to_pylist(), strict=True))


def _content(tables: shards.ShardTables) -> Json:
    """What tells a shard written anew from others of the same one."""
    ids = shards.id_bytes(tables.records["id"]) if len(tables.records) else np.zeros(0, "V16")
    blank = pc.equal(tables.records["meta"], "{}").to_numpy(zero_copy_only=False) & (
        pc.binary_length(tables.records["text"]).to_numpy() == 0
    )
    return {
        "records": digest_of(ids.tobytes(), np.packbits(blank).tobytes()),
        "items": [key.hex() for key in tables.items["key"].to_pylist()],
    }
