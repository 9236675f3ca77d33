"""A shard: the records of one batch of items, written once.

`build` turns what the parsers sent back into the three tables of a shard: occurrences of equal records are folded into
one row that keeps all their origins, rows are sorted by id. Occurrences with other `meta` are rows of their own: what
stands beside a text (a row's other columns, the tools of a conversation) goes when its item goes. All in Arrow and
numpy, O(n log n) in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sheaf.corpus.schema import ITEMS, ORIGIN, QUARANTINE, RECORDS
from sheaf.errors import CorruptStore
from sheaf.files import checked, present
from sheaf.privacy import hidden_column
from sheaf.sources.base import Item

ROW_GROUP = 1024  # rows: reading one record decompresses at most this many


@dataclass(frozen=True)
class ShardTables:
    records: pa.Table
    items: pa.Table
    quarantine: pa.Table


def build(
    items: Sequence[Item],
    keys: Sequence[bytes],
    records: pa.Table,
    regions: pa.Table,
    about: pa.Table,
    *,
    part: int = 0,
    last: bool = True,
) -> ShardTables:
    """items and keys: what was read, in order; records, regions, about: PARSED_* tables whose `item` counts in it.

    part, last: of a long item, whose structure is charged to part 0.
    """
    listed = _item_columns(items)
    account = _account(items, keys, records, regions, about, structure=part == 0)
    return ShardTables(
        records=_fold(records, listed),
        items=account.append_column("part", pa.array(np.full(len(items), part, np.int32)))
        .append_column("last", pa.array(np.full(len(items), last)))
        .cast(ITEMS),
        quarantine=_quarantine(regions, listed),
    )


def write(tables: ShardTables, folder: Path) -> None:
    for name in ("records", "items", "quarantine"):
        table: pa.Table = getattr(tables, name)
        path = folder / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP, write_page_checksum=True)


def read(folder: Path, name: str, columns: list[str] | None = None) -> pa.Table:
    """One table of a shard. Raises CorruptStore.

    A whole table is checked by its file's digest; some columns of it by the checksums of their pages, so that reading
    ids does not cost a pass over all texts. A column may be a part: "origins.list.element.item".
    """
    path = present(folder / f"{name}.parquet")
    if columns is None:
        return pq.read_table(checked(path))
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns)
    except (OSError, pa.ArrowException) as error:
        raise CorruptStore(
            "a file of the workspace cannot be read",
            where=str(path),
            why=str(error),
            fix=f"delete {folder} and prepare again",
        ) from error


def _item_columns(items: Sequence[Item]) -> dict[str, pa.Array]:
    return {
        name: pa.array([getattr(i, name) for i in items], pa.string()) for name in ("source", "path", "uri", "version")
    }


def _fold(records: pa.Table, listed: dict[str, pa.Array]) -> pa.Table:
    order = _order(records, listed["path"])
    ids, item = _one(records["id"]).take(order), _one(records["item"]).take(order)
    first = _run_starts(ids, _one(records["meta"]), order)
    columns = {"item": item} | {name: column.take(item) for name, column in listed.items()}
    columns |= {field.name: _one(records[field.name].take(order)) for field in ORIGIN if field.name not in columns}
    origins = pa.StructArray.from_arrays([columns[f.name] for f in ORIGIN], fields=list(ORIGIN))
    offsets = pa.array(np.append(first, len(ids)), pa.int32())
    head = order.take(pa.array(first))  # texts are moved once: they are nearly all of the memory that this takes
    return pa.Table.from_arrays(
        [
            ids.take(pa.array(first)),
            *(_one(records[name].take(head)) for name in ("kind", "text", "messages", "payload", "meta")),
            pa.ListArray.from_arrays(offsets, origins, type=pa.list_(ORIGIN)),
        ],
        schema=RECORDS,
    )


def _order(records: pa.Table, path_of_item: pa.Array) -> pa.Array:
    keys = {
        "id": records["id"].cast(pa.binary()),
        "meta": records["meta"],
        "path": path_of_item.take(_one(records["item"])),
    }
    keys |= {name: records[name] for name in ("member", "locator")}
    return pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])


def _run_starts(ids: pa.Array, meta: pa.Array, order: pa.Array) -> np.ndarray:
    """int64: the first row of each run of equal (id, meta). ids: sorted; meta: by `order` as the ids are."""
    raw = id_bytes(ids)
    if len(raw) == 0:
        return np.zeros(0, np.int64)
    new = np.append(True, raw[1:] != raw[:-1])
    again = np.flatnonzero(~new)
    here, before = (meta.take(order.take(pa.array(rows))) for rows in (again, again - 1))
    new[again] = pc.not_equal(here, before).to_numpy(zero_copy_only=False)
    return np.flatnonzero(new).astype(np.int64)


def id_bytes(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of ids as numpy "S"-free fixed bytes: dtype V16 (n,)."""
    array = _one(ids)
    buffer = array.buffers()[1]
    if len(array) == 0 or buffer is None:
        return np.zeros(0, "V16")
    return np.frombuffer(buffer, "V16", len(array) + array.offset)[array.offset :]


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def _sum_by_item(item: pa.ChunkedArray, weight: np.ndarray, n: int) -> np.ndarray:
    # float64 bincount would lose bytes above 2^53 only; np.add.at keeps integers exact at any size
    total = np.zeros(n, np.int64)
    np.add.at(total, item.to_numpy(), weight)
    return total


def _account(
    items: Sequence[Item],
    keys: Sequence[bytes],
    records: pa.Table,
    regions: pa.Table,
    about: pa.Table,
    *,
    structure: bool,
) -> pa.Table:
    n = len(items)
    record_bytes = _sum_by_item(records["item"], records["bytes"].to_numpy(), n)
    quarantined_bytes = _sum_by_item(regions["item"], regions["bytes"].to_numpy(), n)
    structure_bytes = about["structure_bytes"].to_numpy() if structure else np.zeros(n, np.int64)
    return pa.table(
        {
            "key": pa.array(keys, pa.binary(16)),
            **_item_columns(items),
            "size": record_bytes + quarantined_bytes + structure_bytes,
            "about": pa.array([i.about for i in items], pa.string()),
            "digest": about["digest"],
            "claimed": pa.array([i.media for i in items], pa.string()),
            "media": about["media"],
            "structure_bytes": structure_bytes,
            "record_bytes": record_bytes,
            "quarantined_bytes": quarantined_bytes,
            "records": _sum_by_item(records["item"], np.ones(len(records), np.int64), n),
            "quarantined": _sum_by_item(regions["item"], np.ones(len(regions), np.int64), n),
            "notes": hidden_column(about["notes"]),
        }
    )


def _quarantine(regions: pa.Table, listed: dict[str, pa.Array]) -> pa.Table:
    item = _one(regions["item"])
    columns = {name: column.take(item) for name, column in listed.items()}
    columns |= {n: _one(regions[n]) for n in ("member", "locator", "bytes", "reason")}
    columns["detail"] = hidden_column(regions["detail"])  # it may quote the data
    return pa.Table.from_arrays([columns[f.name] for f in QUARANTINE], schema=QUARANTINE)
