"""The sandbox's child: receives groups of items, parses them, answers with Arrow tables. Runs confined (`confine`).

It counts each item before it touches it, so that whoever watches knows what it died of. Finished items are committed
when a group ends, or when 8 MB of text have gathered; a long item's records are sent as they come, with weights instead
of their bytes, which are known at its end. While an item is read, a frame a second says how far it got. Out of memory
is an exit code: after that nothing in the process can be trusted to work.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import socket
import sys
import time
from typing import Any

import orjson
import pyarrow as pa

from sheaf.formats import fast, stream, wire
from sheaf.formats.charge import Int64
from sheaf.formats.confine import allow_cpu, confine
from sheaf.formats.guess import confidence
from sheaf.formats.item import ItemResult, read_item
from sheaf.formats.piece import ParseOptions, ParserLimits
from sheaf.formats.run import RunOf, run
from sheaf.formats.schema import PARSED_ITEMS, PARSED_REGIONS
from sheaf.formats.settle import Settled, joined
from sheaf.formats.table import FORMATS, register

FLUSH_CHARACTERS = 8 << 20
FLUSH_ROWS = 50_000
_IPC = pa.ipc.IpcWriteOptions(use_threads=False)


class Outbox:
    """Gathers rows, and sends them as columns. begun: the pipe of `wire.Begun`. seconds: the limit without progress."""

    def __init__(self, sock: socket.socket, begun: int, seconds: float) -> None:
        self._sock = sock
        self._begun = begun
        self._seconds = seconds
        self._pause = min(1.0, seconds / 4)
        self.item = self._read = 0
        self._told, self._allowed = 0.0, -1e9  # when
        self._characters = 0
        self._uncommitted = 0
        self._first_stream = 0
        self._records: list[tuple[Any, ...]] = []
        self._made: list[pa.RecordBatch] = []  # records in order: these, then _records
        self._rows = 0
        self._streams: list[tuple[Any, ...]] = []
        self._regions: list[tuple[Any, ...]] = []
        self._items: list[tuple[Any, ...]] = []

    def begin(self, item: int) -> None:
        self.item, self._read, self._told = item, 0, time.monotonic()
        self._first_stream = len(self._streams)
        os.write(self._begun, b"1")
        if self._told > self._allowed + self._pause:  # two system calls, which many small items need not
            self._allow()

    def progress(self, more: int) -> None:
        """So many more bytes were read or expanded."""
        self._read += more
        if time.monotonic() - self._told > self._pause:
            wire.send(self._sock, b"P", wire.PROGRESS.pack(self.item, self._read))
            self._told = time.monotonic()
            self._allow()

    def _allow(self) -> None:
        allow_cpu(self._seconds)
        self._allowed = self._told

    def record(
        self, kind: str, text: bytes | memoryview, messages: str, payload: bytes,
        meta: str, member: str, locator: str, media: str, encoding: str, repairs: str, stream: int, weight: int,
    ) -> None:  # fmt: skip
        self._records.append((
            self.item, kind, text, messages, payload, meta, member, locator, media, encoding,
            confidence(encoding), repairs, self._first_stream + stream, weight,
        ))  # fmt: skip
        self._gathered(1, len(text) + len(messages) + len(payload) + len(meta))

    def batch(
        self, ready: Settled, starts: Int64, ends: Int64, member: str, media: str, encoding: str, stream: int
    ) -> None:
        self._end_rows()
        about = RunOf(self.item, member, media, encoding, confidence(encoding), self._first_stream + stream)
        self._made.append(run(about, ready, starts, ends))
        self._gathered(len(starts), ready.text_bytes + ready.meta_bytes)

    def finish(self, result: ItemResult) -> None:
        self._streams += [(self.item, *charge) for charge in zip(result.cost, result.whole, strict=True)]
        self._regions += [
            (self.item, region.member, region.locator, size, region.reason, region.detail)
            for region, size in zip(result.regions, result.region_bytes, strict=True)
        ]
        self._items.append((self.item, result.digest, result.media, result.structure, result.notes))
        if self._uncommitted + self._characters > FLUSH_CHARACTERS:
            self.commit()

    def commit(self) -> None:
        self._send_records()
        self._send(b"Q", PARSED_REGIONS, [_table(PARSED_REGIONS, self._regions)])
        self._send(b"T", wire.STREAMS, [_table(wire.STREAMS, self._streams)])
        self._send(b"I", PARSED_ITEMS, [_table(PARSED_ITEMS, self._items)])
        self._uncommitted = 0

    def bug(self, detail: str) -> None:
        wire.send(self._sock, b"X", detail.encode("utf-8", "replace"))

    def _gathered(self, rows: int, characters: int) -> None:
        self._rows += rows
        self._characters += characters
        if self._characters > FLUSH_CHARACTERS or self._rows > FLUSH_ROWS:
            self._send_records()

    def _end_rows(self) -> None:
        if self._records:
            self._made.append(_table(wire.RECORDS, self._records))

    def _send_records(self) -> None:
        self._end_rows()
        if self._made:
            self._send(b"R", wire.RECORDS, self._made)
        self._made = []
        self._uncommitted += self._characters
        self._characters = self._rows = 0

    def _send(self, kind: bytes, schema: pa.Schema, tables: list[pa.RecordBatch]) -> None:
        parts = _Parts()
        with pa.ipc.new_stream(pa.PythonFile(parts, "w"), schema, options=_IPC) as writer:
            for table in tables:
                writer.write_batch(table)
        wire.send(self._sock, kind, *parts.written)


class _Parts:
    """A file that keeps what is written to it as it is: Arrow hands it the buffers of columns, which nobody copies."""

    closed = False

    def __init__(self) -> None:
        self.written: list[bytes | pa.Buffer] = []

    def write(self, part: bytes | pa.Buffer) -> int:
        self.written.append(part)
        return len(part)

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _table(schema: pa.Schema, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """Of these rows, which are taken out of the list."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    rows.clear()
    arrays = [
        joined(column, field.type) if field.name == "text" else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.record_batch(arrays, schema=schema)


def main(descriptor: int, begun: int, parent: int, limits_json: str, extra: str = "") -> None:
    """Serve until the parent closes the socket."""
    limits = ParserLimits(**orjson.loads(limits_json))
    if extra:
        _load(extra)
    _preload()
    gc.freeze()  # what is imported lives on; looking through it for cycles took a tenth of the time of JSON Lines
    gc.set_threshold(50_000, 20, 100)
    sock = socket.socket(fileno=descriptor)
    fast.reserve()
    holds = confine(limits.memory_mb, parent)
    wire.send(sock, b"H", orjson.dumps(holds))
    try:
        while True:
            _, request, fds = wire.receive(sock, 1 << 28, fds=wire.MAX_DESCRIPTORS)
            _group(sock, begun, orjson.loads(request), fds, limits)
    except (wire.Closed, BrokenPipeError, ConnectionResetError):
        return
    except MemoryError:
        os._exit(wire.EXIT_MEMORY)


def _preload() -> None:
    """Import everything before the limits hold, so that the first item of a kind has the same room as the next."""
    for format in FORMATS:
        format.parser()
    for name in ("chardet", "ftfy"):
        importlib.import_module(name)


def _group(sock: socket.socket, begun: int, request: dict[str, Any], fds: list[int], limits: ParserLimits) -> None:
    asked: dict[str, Any] = request["options"]
    asked["key"] = tuple(asked["key"])
    options = ParseOptions(**asked)
    outbox = Outbox(sock, begun, limits.seconds)
    stream.tell(outbox.progress)
    fast.allow(request["fast"])
    for fd, item in zip(fds, request["items"], strict=True):
        outbox.begin(item["item"])
        outbox.finish(_item(fd, item, options, limits, outbox))
        os.close(fd)
    outbox.commit()
    wire.send(sock, b"D")


def _item(fd: int, item: dict[str, Any], options: ParseOptions, limits: ParserLimits, outbox: Outbox) -> ItemResult:
    try:
        return read_item(fd, item["size"], item["name"], item["media"], item["about"], options, limits, outbox)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 a bug in a parser costs one item, and becomes a ledger entry
        outbox.bug(f"{type(error).__name__} in {_place(error)}: {error}"[:300])
        os._exit(1)  # records that the item has already sent must not be committed


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__')}.{trace.tb_frame.f_code.co_name}" if trace else "?"


def _load(path: str) -> None:
    """Parsers for tests that hang, crash or flood: the file's FORMATS. Only Sandbox(_extra=…) names one."""
    spec = importlib.util.spec_from_file_location("sheaf.formats.extra", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sheaf.formats.extra"] = module
    spec.loader.exec_module(module)
    for format in module.FORMATS:
        register(format)
