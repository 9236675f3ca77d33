"""What comes back from the sandbox's child, checked before anything is believed, and put together.

A child may be broken or taken over by what it parsed. So every table must have the schema, valid offsets and UTF-8, no
compression (a bomb for us), JSON where JSON belongs, and only items that were asked for; what waits for its item's end
may not be more than the child could have held; and each item's bytes must add up. An item which does not is one region,
"parser-bug".

Ids it does not say: they are computed here (`ids`), once, so there is nothing to lie about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.formats.charge import Int64, RecordCharges
from sheaf.formats.fast import odd_values
from sheaf.formats.ids import record_ids
from sheaf.formats.long_item import WITH_IDS, LongItem, Spool, numbers, row_bytes, with_bytes
from sheaf.formats.reasons import REASONS
from sheaf.formats.schema import KINDS, PARSED_ITEMS, PARSED_RECORDS, PARSED_REGIONS
from sheaf.formats.wire import RECORDS, STREAMS

LONG_BYTES = 64 << 20  # of records (`row_bytes`), above which an item's wait on disk
_SCHEMAS = {b"R": RECORDS, b"Q": PARSED_REGIONS, b"T": STREAMS, b"I": PARSED_ITEMS}
_KINDS = {*KINDS, "row"}  # the last for surveys (`ParseOptions.raw_rows`)
_MOST = 1 << 50  # bytes that anything here may claim
_REMARK = 10_000  # characters of a region's detail or an item's notes
_BYTES = re.compile(r'\{"bytes":\[[0-9]{1,18},[0-9]{1,18}\]\}')  # almost all locators
_COMPRESSED = 3  # number of a field in the header of a record batch, as it lies in a message


class BadAnswer(Exception):
    """The child sent what it should not."""


@dataclass(frozen=True)
class Parsed:
    """Tables of corpus.schema's PARSED_ schemas; `item` is the item's number in the request. Items come whole, each
    once, with all their regions. long: the items whose records are too much to hold, and so are not in `records`.

    For every item: Σ records.bytes + Σ regions.bytes + structure_bytes == its size.
    """

    records: pa.Table
    regions: pa.Table
    items: pa.Table
    long: tuple[LongItem, ...] = ()


class Answers:
    """Collects the tables of a request. sizes: the items' bytes. memory_bytes: the child's. folder: where records may
    wait (default: the system's for temporary files)."""

    def __init__(self, sizes: Sequence[int], memory_bytes: int, folder: Path | None = None) -> None:
        self._sizes = np.array(sizes, np.int64)
        self._memory_bytes = memory_bytes
        self._waiting_bytes = 0  # of tables in memory that no commit has taken
        self._folder = folder
        self._done = np.zeros(len(sizes), bool)
        self._next = 0
        self._pending: dict[bytes, list[pa.Table]] = {kind: [] for kind in _SCHEMAS}
        self._current, self._current_bytes = -1, 0  # the item that records came of last, and how much
        self._own: list[pa.Table] = []  # its records, as long as they are few
        self._spools: dict[int, Spool] = {}
        self._forget()

    def _forget(self) -> None:
        self.held_bytes = 0  # of answers that can be taken
        self._records: list[pa.Table] = []
        self._regions: list[pa.Table] = []
        self._items: list[pa.Table] = []
        self._long: list[LongItem] = []

    def unfinished(self, most: int) -> list[int]:
        """The next items without an answer."""
        while self._next < len(self._done) and self._done[self._next]:
            self._next += 1
        waiting = np.flatnonzero(~self._done[self._next : self._next + 4 * most]) + self._next
        return [int(n) for n in waiting[:most]]

    def take(self, kind: bytes, payload: memoryview) -> None:
        """One frame; I commits what came before it. Raises BadAnswer."""
        if kind not in _SCHEMAS:
            raise BadAnswer("an unknown frame")
        table = _table(payload, _SCHEMAS[kind])
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes > self._memory_bytes:
            raise BadAnswer("more than it could have held itself, and no end")
        if kind == b"R":
            self._take_records(table)
        else:
            self._pending[kind].append(table)
        if kind == b"I":
            self._commit()

    def rollback(self) -> None:
        """Forget what was not committed."""
        for tables in self._pending.values():
            tables.clear()
        for spool in self._spools.values():
            spool.close()
        self._spools.clear()
        self._own.clear()
        self._current, self._current_bytes = -1, 0
        self._waiting_bytes = 0

    def has(self, item: int) -> bool:
        """Whether it is answered."""
        return bool(self._done[item])

    def refuse(self, item: int, reason: str, detail: str) -> None:
        """The whole item is one region."""
        size = int(self._sizes[item])
        row = {"item": item, "member": "", "locator": f'{{"bytes":[0,{size}]}}', "bytes": size}
        self._regions.append(_rows([{**row, "reason": reason, "detail": detail}], PARSED_REGIONS))
        account = {"item": item, "digest": "", "media": "", "structure_bytes": 0, "notes": ""}
        self._items.append(_rows([account], PARSED_ITEMS))
        self._done[item] = True

    @property
    def has_long(self) -> bool:
        return bool(self._long)

    def taken(self) -> Parsed:
        """What was answered since the last call, sorted by item."""
        parsed = Parsed(
            by_item(_joined(self._records, PARSED_RECORDS)),
            by_item(_joined(self._regions, PARSED_REGIONS)),
            by_item(_joined(self._items, PARSED_ITEMS)),
            tuple(self._long),
        )
        self._forget()
        return parsed

    def _take_records(self, table: pa.Table) -> None:
        """Keep them; those of the item that the last ones are of apart, for they may become too many."""
        owners = numbers(table, "item")
        if not len(owners):
            return
        if not _inside(owners, len(self._sizes)) or (np.diff(owners) < 0).any():
            raise BadAnswer("records of items that were not asked for, or out of order")
        for name in ("stream", "weight"):
            if not _inside(numbers(table, name), _MOST):
                raise BadAnswer("weights that cannot be")
        _check_values(table)
        table = table.append_column(PARSED_RECORDS.field("id"), record_ids(table))
        starts = np.flatnonzero(np.append(True, owners[1:] != owners[:-1]))
        sizes = np.add.reduceat(row_bytes(table), starts)
        at = 0
        for start, end, size in zip(starts.tolist(), [*starts[1:].tolist(), len(owners)], sizes.tolist(), strict=True):
            if owners[start] != self._current:
                self._pending[b"R"] += self._own
                self._own, self._current, self._current_bytes = [], int(owners[start]), 0
            self._current_bytes += size
            if self._current_bytes > LONG_BYTES or end == len(owners):
                if start > at:  # an empty slice would hold the whole frame
                    self._pending[b"R"].append(table.slice(at, start - at))
                self._own.append(table.slice(start, end - start))
                at = end
            if self._current_bytes > LONG_BYTES:
                self._to_disk()

    def _to_disk(self) -> None:
        spool = self._spools.get(self._current)
        if spool is None:
            spool = self._spools[self._current] = Spool(self._folder)
        for part in self._own:
            spool.add(part)
            self._waiting_bytes -= part.nbytes
        self._own = []

    def _commit(self) -> None:
        self._pending[b"R"] += self._own
        self._own = []
        schemas = {**_SCHEMAS, b"R": WITH_IDS}
        tables = {kind: _joined(found, schemas[kind]) for kind, found in self._pending.items()}
        records, regions, items = tables[b"R"], tables[b"Q"], tables[b"I"]
        streams = _Streams(tables[b"T"])
        streams.check(records)
        records = with_bytes(records, RecordCharges(streams.cost, streams.whole))
        waiting = {item: streams.charged(item, spool) for item, spool in self._spools.items()}
        self._check(records, regions, items, waiting)
        for item, spool in self._spools.items():
            self._long.append(LongItem(item, spool.rows, spool, streams.cost, streams.whole))
        self._spools = {}
        self.rollback()
        self._records.append(records)
        self._regions.append(regions)
        self._items.append(items)
        self.held_bytes += records.nbytes + regions.nbytes + items.nbytes

    def _check(self, records: pa.Table, regions: pa.Table, items: pa.Table, waiting: dict[int, int]) -> None:
        """waiting: the sum of the bytes of the records on disk, by item."""
        found = numbers(items, "item")
        if len(np.unique(found)) != len(found) or not _inside(found, len(self._sizes)) or self._done[found].any():
            raise BadAnswer("items that were not asked for")
        total = np.zeros(len(self._sizes), np.int64)
        total[found] += numbers(items, "structure_bytes")
        for table in (records, regions):
            owners, sizes = numbers(table, "item"), numbers(table, "bytes")
            if not np.isin(owners, found).all() or not _inside(sizes, _MOST):
                raise BadAnswer("rows of items that were not finished")
            np.add.at(total, owners, sizes)
        for item, size in waiting.items():
            if item not in found:
                raise BadAnswer("rows of items that were not finished")
            total[item] += size
        if not _inside(numbers(items, "structure_bytes"), _MOST):
            raise BadAnswer("negative bytes")
        if not set(regions.column("reason").unique().to_pylist()) <= REASONS.keys():
            raise BadAnswer("an unknown reason")
        _check_locators(regions.column("locator"))
        for remarks in (regions.column("detail"), items.column("notes"), items.column("media")):
            if len(remarks) and pc.max(pc.utf8_length(remarks)).as_py() > _REMARK:
                raise BadAnswer("a remark as long as a book")
        wrong = found[total[found] != self._sizes[found]]
        if len(wrong):
            n = int(wrong[0])
            raise Miscounted(n, f"its parts sum to {total[n]} bytes, not to {self._sizes[n]}")
        self._done[found] = True


class _Streams:
    """The streams of a commit, by number."""

    def __init__(self, table: pa.Table) -> None:
        self._owner = numbers(table, "item")
        self.cost, self.whole = numbers(table, "cost"), numbers(table, "whole")
        if not _inside(self.cost, _MOST) or not _inside(self.whole - 1, _MOST):
            raise BadAnswer("streams that cannot be")

    def check(self, records: pa.Table) -> None:
        stream = numbers(records, "stream")
        if not _inside(stream, len(self._owner)) or not np.array_equal(self._owner[stream], numbers(records, "item")):
            raise BadAnswer("records of a stream that is not their item's")

    def charged(self, item: int, spool: Spool) -> int:
        """The bytes of all its records."""
        own = self._owner == item
        try:
            return spool.charged(np.where(own, self.cost, 0), np.where(own, self.whole, 1))
        except IndexError as error:
            raise BadAnswer(str(error)) from None


class BadItem(BadAnswer):
    """The answer is wrong about this item."""

    def __init__(self, item: int, detail: str) -> None:
        super().__init__(detail)
        self.item = item


class Miscounted(BadItem):
    """An item's bytes do not add up."""


def _table(payload: memoryview, schema: pa.Schema) -> pa.Table:
    try:
        with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
            if not reader.schema.equals(schema, check_metadata=True):
                raise BadAnswer("another schema")
        batches = [pa.ipc.read_record_batch(message, schema) for message in _plain_messages(payload)]
        table = pa.Table.from_batches(batches, schema)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise BadAnswer(f"no Arrow table: {error}"[:200]) from None
    if table.nbytes > len(payload):
        raise BadAnswer("columns that share their bytes")
    if any(column.null_count for column in table.columns):
        raise BadAnswer("a null")
    return table


def _plain_messages(payload: memoryview) -> Iterator[pa.Message]:
    """The record batches of a stream. Raises BadAnswer for one that is compressed: its buffers say themselves how large
    they will be, and Arrow believes them."""
    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(payload)):
        if message.type == "record batch":
            if _is_compressed(message.metadata.to_pybytes()):
                raise BadAnswer("compressed")
            yield message
        elif message.type != "schema":
            raise BadAnswer(f"a {message.type}")


def _is_compressed(message: bytes) -> bool:
    """Whether a record batch says so, in its flatbuffer: Message.header, RecordBatch.compression (Arrow's Message.fbs;
    https://flatbuffers.dev/internals). Only of messages that Arrow has read, and so verified."""
    root = _unsigned(message, 0, 4)
    header = _field(message, root, 2)
    batch = header + _unsigned(message, header, 4)
    return _field(message, batch, _COMPRESSED) > 0


def _field(message: bytes, table: int, number: int) -> int:
    """Where a field of a table lies; 0 if it is absent."""
    fields = table - int.from_bytes(message[table : table + 4], "little", signed=True)
    at = 4 + 2 * number
    offset = _unsigned(message, fields + at, 2) if at < _unsigned(message, fields, 2) else 0
    return table + offset if offset else 0


def _unsigned(message: bytes, at: int, size: int) -> int:
    return int.from_bytes(message[at : at + size], "little")


def _check_values(records: pa.Table) -> None:
    """Raises BadAnswer for what later readers of the columns would stumble over."""
    if not set(records.column("kind").unique().to_pylist()) <= _KINDS:
        raise BadAnswer("an unknown kind")
    _check_locators(records.column("locator"))
    sure = records.column("confidence").to_numpy()
    if not ((sure >= 0) & (sure <= 1)).all():
        raise BadAnswer("a confidence that cannot be")
    for text in odd_values(records.column("meta"), "objects", "{}"):
        if not isinstance(_json(text), dict):
            raise BadAnswer("a meta that is no object")
    messages = records.column("messages")
    for text in messages.filter(pc.not_equal(messages, "")).to_pylist():
        _json(text)


def _check_locators(locators: pa.ChunkedArray) -> None:
    for text in odd_values(locators, "byte_places", "{}"):
        if not _BYTES.fullmatch(text) and not isinstance(_json(text), dict):
            raise BadAnswer("a locator that is no object")


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadAnswer("no JSON where it belongs") from None


def _joined(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *tables])


def _rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema)


def by_item(table: pa.Table) -> pa.Table:
    """Sorted by item; inside an item as it was parsed. Items refused out of turn are why it may not be already."""
    owners = numbers(table, "item")
    if len(owners) < 2 or (np.diff(owners) >= 0).all():
        return table
    return table.take(pa.array(np.argsort(owners, kind="stable")))


def _inside(values: Int64, n: int) -> bool:
    return not len(values) or (int(values.min()) >= 0 and int(values.max()) < n)
