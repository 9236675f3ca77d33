"""Arrow IPC files (Feather too) and streams: a record a row, batch by batch.

Batches lie in the file as they would in memory, so each is checked before it is touched; one that is broken costs its
broken rows, or itself if its bytes cannot be had, and in a file the next goes on. In a stream nobody knows where the
next would begin. A file without its footer is read as the stream that it holds, as far as that goes. How many rows a
batch that cannot be read had is what its head says; if that is broken too, those after it count on without it.

Memory: one batch, as the writer cut it, and the rows of 16 MB of it. Feather's first version is held whole, by a reader
that a damaged file can crash: the item is then refused as a whole.
"""

from __future__ import annotations

import io
import itertools
import struct
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.feather as feather

from sheaf.formats.arrow_rows import BATCH_ROWS, Rows, refusal
from sheaf.formats.piece import Context, Pieces, Refused
from sheaf.formats.seekable import seekable
from sheaf.formats.stream import Stream

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGIC = b"ARROW1\0\0"
TAIL = 10  # the footer's length, and the magic again
_BLOCK = struct.Struct("<qi4xq")
_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


def parse_file(stream: Stream, context: Context) -> Pieces:
    file, size = seekable(stream, context)
    rows = Rows(context, size, trusted=False)
    try:
        blocks = _Blocks(file, size)
        reader = blocks.reader(0)
    except MemoryError:
        raise
    except (struct.error, *_ERRORS) as error:
        file.seek(len(MAGIC))
        yield from _stream(file, size, rows, error)
        return
    count = len(blocks.batches)
    for n in range(count):
        start, end = size * n // count, size * (n + 1) // count
        batch = _next(reader)
        if isinstance(batch, pa.RecordBatch):
            yield from rows.portions(batch, start, end)
            continue
        error = batch or Refused("corrupt", "there is none where it should be")
        yield rows.lost(blocks.rows(n, context.limits.records), start, end, error, f"record batch {n}")
        reader = blocks.reader(n + 1)


def parse_stream(stream: Stream, context: Context) -> Pieces:
    file, size = seekable(stream, context)
    yield from _stream(file, size, Rows(context, size, trusted=False), None)


def parse_feather(stream: Stream, context: Context) -> Pieces:
    """Feather version 1: columns one after another, no batches."""
    file, size = seekable(stream, context)
    try:
        table = feather.read_table(file, use_threads=False, memory_map=False)
    except MemoryError:
        raise
    except _ERRORS as error:
        raise refusal(error) from None
    rows = Rows(context, size, trusted=False)
    done = 0
    for batch in table.to_batches(BATCH_ROWS):
        start, done = size * done // len(table), done + len(batch)
        yield from rows.portions(batch, start, size * done // len(table))


def _stream(file: BinaryIO, size: int, rows: Rows, no_footer: Exception | None) -> Pieces:
    """no_footer: why the file that holds the stream cannot be read as such."""
    at = file.tell()
    try:
        reader = pa.ipc.open_stream(pa.PythonFile(file, "r"), options=_OPTIONS)
    except MemoryError:
        raise
    except _ERRORS as error:
        raise _broken(no_footer or error, file, size) from None
    for n in itertools.count():
        batch = _next(reader)
        start, at = at, min(file.tell(), size)
        if isinstance(batch, Exception):
            yield rows.lost(0, start, size, _broken(batch, file, size), f"after {n} record batches")
            return
        if batch is None:
            break
        yield from rows.portions(batch, start, at)
    if no_footer is not None:
        yield rows.lost(0, at, size, _broken(no_footer, file, size), "after the last record batch")


def _next(reader: pa.RecordBatchReader) -> pa.RecordBatch | Exception | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except MemoryError:
        raise
    except _ERRORS as error:
        return error


def _broken(error: Exception, file: BinaryIO, size: int) -> Exception:
    return Refused("truncated", refusal(error).detail) if file.tell() >= size else refusal(error)


class _Blocks:
    """Where the batches of a file lie, as its footer says: the part of Footer in Arrow's File.fbs that is needed.

    Batches are read as a stream put together from the blocks. Arrow's own reader of files starts threads to read a
    footer, which the sandbox forbids, and does not say how many rows a broken batch has.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Raises ValueError or struct.error if there is no footer."""
        self._file = file
        file.seek(max(0, size - TAIL))
        length, magic = struct.unpack(f"<i{len(MAGIC) - 2}s", file.read(TAIL))
        if magic != MAGIC[:-2] or not 0 < length <= size - TAIL - len(MAGIC):
            raise ValueError("there is no footer")
        file.seek(size - TAIL - length)
        footer = _Table.root(file.read(length))
        self._dictionaries, self.batches = footer.blocks(2), footer.blocks(3)
        first = min((offset for offset, _ in (*self._dictionaries, *self.batches)), default=size - TAIL - length)
        if any(offset < 0 or span < 0 or offset + span > size for offset, span in self.batches):
            raise ValueError("the footer leads outside the file")
        self._schema = (len(MAGIC), max(0, first - len(MAGIC)))

    def reader(self, batch: int) -> pa.RecordBatchReader:
        """From this batch on."""
        parts = [self._schema, *self._dictionaries, *self.batches[batch:]]
        return pa.ipc.open_stream(pa.PythonFile(_Parts(self._file, parts), "r"), options=_OPTIONS)

    def rows(self, batch: int, most: int) -> int:
        """How many rows a batch says it has; 0 if that cannot be read."""
        offset, span = self.batches[batch]
        self._file.seek(offset)
        head = self._file.read(min(span, 1 << 20))
        try:
            message = _Table.root(head[8 if head.startswith(b"\xff\xff\xff\xff") else 4 :])
            rows = message.table(2).number(0, "<q")
        except (struct.error, ValueError):
            return 0
        return rows if 0 <= rows <= most else 0


class _Table:
    """A table of a FlatBuffer. Raises struct.error if it leads outside."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        if at < 0 or self._fields < 0:
            raise struct.error("a table before the buffer")

    @staticmethod
    def root(data: bytes) -> _Table:
        return _Table(data, struct.unpack_from("<I", data)[0])

    def _place(self, field: int) -> int:
        """Of a field; 0 if it has its default."""
        size = struct.unpack_from("<H", self._data, self._fields)[0]
        entry = 4 + 2 * field
        offset = struct.unpack_from("<H", self._data, self._fields + entry)[0] if entry + 2 <= size else 0
        return self._at + offset if offset else 0

    def number(self, field: int, kind: str) -> int:
        at = self._place(field)
        return struct.unpack_from(kind, self._data, at)[0] if at else 0

    def table(self, field: int) -> _Table:
        at = self._place(field)
        return _Table(self._data, at + struct.unpack_from("<I", self._data, at)[0])

    def blocks(self, field: int) -> list[tuple[int, int]]:
        """(offset, bytes) of each Block in a vector."""
        at = self._place(field)
        if not at:
            return []
        at += struct.unpack_from("<I", self._data, at)[0]
        count = struct.unpack_from("<I", self._data, at)[0]
        data = self._data[at + 4 : at + 4 + count * _BLOCK.size]
        return [(offset, head + body) for offset, head, body in _BLOCK.iter_unpack(data)]


class _Parts(io.RawIOBase):
    """Parts of a file, (offset, bytes), one after another."""

    def __init__(self, file: BinaryIO, parts: list[tuple[int, int]]) -> None:
        self._file, self._parts = file, parts[::-1]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        while self._parts:
            offset, left = self._parts.pop()
            self._file.seek(offset)
            data = self._file.read(min(left, len(view)))
            if data:
                view[: len(data)] = data
                self._parts.append((offset + len(data), left - len(data)))
                return len(data)
        return 0
