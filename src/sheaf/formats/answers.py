"""What comes back from the sandbox's child, checked before anything is believed, and put together.

A child may be broken or taken over by what it parsed. So every table must have the schema, valid offsets and UTF-8, and
only items that were asked for; and each item's bytes must add up. An item which does not is one region, "parser-bug".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.formats.reasons import REASONS
from sheaf.formats.schema import PARSED_ITEMS, PARSED_RECORDS, PARSED_REGIONS
from sheaf.formats.wire import BYTES, RECORDS

_SCHEMAS = {b"R": RECORDS, b"Q": PARSED_REGIONS, b"B": BYTES, b"I": PARSED_ITEMS}


class BadAnswer(Exception):
    """The child sent what it should not."""


@dataclass(frozen=True)
class Parsed:
    """Tables of corpus.schema's PARSED_ schemas; items has one row per item of the request, in order.

    For every item: Σ records.bytes + Σ regions.bytes + structure_bytes == its size.
    """

    records: pa.Table
    regions: pa.Table
    items: pa.Table


class Answers:
    """Collects the tables of a request. sizes: the items' bytes."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = np.array(sizes, np.int64)
        self._done = np.zeros(len(sizes), bool)
        self._next = 0
        self._pending: dict[bytes, list[pa.Table]] = {kind: [] for kind in _SCHEMAS}
        self._records: list[pa.Table] = []
        self._regions: list[pa.Table] = []
        self._items: list[pa.Table] = []

    def unfinished(self, most: int) -> list[int]:
        """The next items without an answer."""
        while self._next < len(self._done) and self._done[self._next]:
            self._next += 1
        waiting = np.flatnonzero(~self._done[self._next : self._next + 4 * most]) + self._next
        return [int(n) for n in waiting[:most]]

    def take(self, kind: bytes, payload: bytearray) -> None:
        """One frame; I commits what came before it. Raises BadAnswer."""
        if kind not in _SCHEMAS:
            raise BadAnswer("an unknown frame")
        self._pending[kind].append(_table(payload, _SCHEMAS[kind]))
        if kind == b"I":
            self._commit()

    def rollback(self) -> None:
        """Forget what was not committed."""
        for tables in self._pending.values():
            tables.clear()

    def refuse(self, item: int, reason: str, detail: str) -> None:
        """The whole item is one region."""
        size = int(self._sizes[item])
        row = {"item": item, "member": "", "locator": f'{{"bytes":[0,{size}]}}', "bytes": size}
        self._regions.append(_rows([{**row, "reason": reason, "detail": detail}], PARSED_REGIONS))
        account = {"item": item, "digest": "", "media": "", "structure_bytes": 0, "notes": ""}
        self._items.append(_rows([account], PARSED_ITEMS))
        self._done[item] = True

    def parsed(self) -> Parsed:
        return Parsed(
            _sorted(self._records, PARSED_RECORDS),
            _sorted(self._regions, PARSED_REGIONS),
            _sorted(self._items, PARSED_ITEMS),
        )

    def _commit(self) -> None:
        tables = {kind: _joined(found, _SCHEMAS[kind]) for kind, found in self._pending.items()}
        records, regions, items = tables[b"R"], tables[b"Q"], tables[b"I"]
        if len(records) != len(tables[b"B"]):
            raise BadAnswer("records and their bytes differ in number")
        column = RECORDS.get_field_index("locator") + 1
        records = records.add_column(column, PARSED_RECORDS.field("bytes"), tables[b"B"].column("bytes"))
        self._check(records, regions, items)
        self.rollback()
        self._records.append(records)
        self._regions.append(regions)
        self._items.append(items)

    def _check(self, records: pa.Table, regions: pa.Table, items: pa.Table) -> None:
        numbers = _numbers(items, "item")
        if (
            len(np.unique(numbers)) != len(numbers)
            or not _inside(numbers, len(self._sizes))
            or self._done[numbers].any()
        ):
            raise BadAnswer("items that were not asked for")
        total = np.zeros(len(self._sizes), np.int64)
        total[numbers] += _numbers(items, "structure_bytes")
        for table in (records, regions):
            owners, sizes = _numbers(table, "item"), _numbers(table, "bytes")
            if not np.isin(owners, numbers).all() or (sizes < 0).any():
                raise BadAnswer("rows of items that were not finished")
            np.add.at(total, owners, sizes)
        if (_numbers(items, "structure_bytes") < 0).any():
            raise BadAnswer("negative bytes")
        if not set(regions.column("reason").unique().to_pylist()) <= REASONS.keys():
            raise BadAnswer("an unknown reason")
        wrong = numbers[total[numbers] != self._sizes[numbers]]
        if len(wrong):
            n = int(wrong[0])
            raise Miscounted(n, f"its parts sum to {total[n]} bytes, not to {self._sizes[n]}")
        self._done[numbers] = True


class Miscounted(BadAnswer):
    """An item's bytes do not add up."""

    def __init__(self, item: int, detail: str) -> None:
        super().__init__(detail)
        self.item = item


def _table(payload: bytearray, schema: pa.Schema) -> pa.Table:
    try:
        with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
            if reader.schema != schema:
                raise BadAnswer("another schema")
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise BadAnswer(f"no Arrow table: {error}"[:200]) from None
    if any(column.null_count for column in table.columns):
        raise BadAnswer("a null")
    return table


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *tables])


def _rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema)


def _sorted(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """By item; inside an item as it was parsed. Items refused out of turn are why this is not a plain join."""
    table = _joined(tables, schema)
    numbers = _numbers(table, "item")
    if len(numbers) < 2 or (np.diff(numbers) >= 0).all():
        return table
    return table.take(pa.array(np.argsort(numbers, kind="stable")))


def _numbers(table: pa.Table, column: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return pc.cast(table.column(column), pa.int64()).to_numpy()


def _inside(numbers: np.ndarray[Any, np.dtype[np.int64]], n: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= 0 and int(numbers.max()) < n)
