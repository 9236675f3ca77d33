"""Arrow IPC files (Feather too) and streams: a record a row, batch by batch.

Batches lie in the file as they would in memory, so each is checked before it is touched; one that is broken costs its
broken rows, or itself if its bytes cannot be had, and in a file the next goes on. In a stream nobody knows where the
next would begin. A file without its footer is read as the stream that it holds, as far as that goes. Rows of a batch
that cannot be read are not counted: nobody can say how many there were.

Memory: one batch, as the writer cut it, and the rows of 16 MB of it. Feather's first version is held whole, by a reader
that a damaged file can crash: the item is then refused as a whole.
"""

from __future__ import annotations

import itertools
from typing import BinaryIO

import pyarrow as pa
import pyarrow.feather as feather

from sheaf.formats.arrow_rows import BATCH_ROWS, Rows, refusal
from sheaf.formats.piece import Context, Pieces, Refused
from sheaf.formats.seekable import seekable
from sheaf.formats.stream import Stream

MAGIC = b"ARROW1\0\0"
_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)
_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


def parse_file(stream: Stream, context: Context) -> Pieces:
    file, size = seekable(stream, context)
    rows = Rows(context, size, trusted=False)
    try:
        reader = pa.ipc.open_file(pa.PythonFile(file, "r"), options=_OPTIONS)
        count = reader.num_record_batches
    except MemoryError:
        raise
    except _ERRORS as error:
        file.seek(len(MAGIC))
        yield from _stream(file, size, rows, error)
        return
    for n in range(count):
        start, end = size * n // count, size * (n + 1) // count
        try:
            batch = reader.get_batch(n)
        except MemoryError:
            raise
        except _ERRORS as error:
            yield rows.lost(0, start, end, error, f"record batch {n}")
            continue
        yield from rows.portions(batch, start, end)


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
