"""Avro object container files: a record a row, read front to back, a block at a time (writers cut them at 64 KB or so).

A row that cannot be read is a region; where the rows after it would be lost with it, they are, to the end of the block.
A broken block costs itself: the next is found by the marker that stands between blocks. Rows of blocks whose head is
broken are not counted. A row's share of its block's bytes is its share of the expanded ones. Memory: one block.

Format: Avro 1.12 specification, "Object Container Files". Blocks are cut and expanded here, so that every byte counts
against the item's budget; rows are decoded by fastavro.
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import fastavro
import pyarrow as pa
import zstandard
from fastavro.read import LOGICAL_READERS
from fastavro.schema import SchemaParseException, UnknownType

from sheaf.formats import rows
from sheaf.formats.arrow_rows import merged
from sheaf.formats.arrow_values import readable, values
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import BLOCK, Stream, progress

MARK = 16
_HEADER = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "mark", "type": {"type": "fixed", "name": "Mark", "size": MARK}},
        ],
    }
)
_ERRORS = (
    EOFError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error, RecursionError,
    SchemaParseException, UnknownType, zlib.error, lzma.LZMAError, zstandard.ZstdError, pa.ArrowException, OSError,
)  # fmt: skip
_ZSTD_MOST = 1 << 30


@dataclass(frozen=True, slots=True)
class _Block:
    """count rows in data, as it lies in [start, end) of the stream."""

    count: int
    data: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Schema:
    """exact: with dates, decimals and the like. skip: to step over a row of which one of those is out of range."""

    exact: Any
    skip: Any
    expand: Callable[[bytes, int], bytes]
    mark: bytes


def parse(stream: Stream, context: Context) -> Pieces:
    taken = _Taken(stream, context.limits.document_bytes)
    schema = _schema(taken)
    number, packed, expanded = 0, 0, 0
    for block in _blocks(stream, taken, schema.mark):
        if isinstance(block, Region):
            yield block
            continue
        last = number + block.count - 1
        try:
            data = schema.expand(block.data, context.limits.document_bytes)
        except MemoryError:
            raise
        except (Refused, *_ERRORS) as error:
            reason = error.reason if isinstance(error, Refused) else "corrupt"
            place = {"row": [number, last]} if block.count else None
            yield Region(block.start, block.end, reason, f"a block: {error}"[:200], locator=place)
            number = last + 1
            continue
        packed, expanded = packed + len(block.data), expanded + len(data)
        context.budget.expand(len(data), packed, expanded)
        if last >= context.limits.records:
            raise Refused("bomb", f"more than {context.limits.records:,} rows")
        yield from merged(_rows(block, data, schema, number, context))
        number = last + 1


def _schema(taken: _Taken) -> _Schema:
    try:
        header = cast(dict[str, Any], fastavro.schemaless_reader(cast(Any, taken), _HEADER, None))
        meta = header["meta"]
        schema = json.loads(meta["avro.schema"])
        codec = meta.get("avro.codec", b"null").decode()
        exact, skip = fastavro.parse_schema(schema), fastavro.parse_schema(_plain(schema))
    except EOFError:
        raise Refused("truncated", "it ends inside its header") from None
    except MemoryError:
        raise
    except _ERRORS as error:
        raise Refused("corrupt", f"the header: {type(error).__name__}: {error}"[:200]) from None
    if codec not in _CODECS:
        raise Refused("unsupported", f"Avro with the codec {codec[:40]}")
    return _Schema(exact, skip, _CODECS[codec], header["mark"])


def _plain(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {name: _plain(value) for name, value in schema.items() if name != "logicalType"}
    return [_plain(value) for value in schema] if isinstance(schema, list) else schema


def _blocks(stream: Stream, taken: _Taken, mark: bytes) -> Iterator[_Block | Region]:
    while stream.peek(1):
        start = stream.position
        try:
            count, size = taken.number(), taken.number()
            if count < 0 or not 0 <= size <= taken.limit:
                raise ValueError(f"a block of {count} rows and {size} bytes")
            data = taken.read(size)
            if taken.read(MARK) != mark:
                raise ValueError("a block does not end where it says")
        except EOFError:
            yield Region(start, stream.position, "truncated", "it ends inside a block")
        except ValueError as error:
            _seek(stream, mark)
            yield Region(start, stream.position, "corrupt", f"{error}; rows are counted on without it")
        else:
            yield _Block(count, data, start, stream.position)


def _seek(stream: Stream, mark: bytes) -> None:
    """To where the next block begins: behind the next marker, or the end."""
    while ahead := stream.peek(BLOCK):
        found = ahead.find(mark)
        if found >= 0:
            stream.read(found + MARK)
            return
        stream.read(max(1, len(ahead) - MARK + 1))


def _rows(block: _Block, data: bytes, schema: _Schema, number: int, context: Context) -> Iterator[Record | Region]:
    file, whole = io.BytesIO(data), max(len(data), 1)
    at = block.start
    last = number + block.count - 1
    for row in range(number, last + 1):
        try:
            value = _value(file, schema)
        except _ERRORS as error:
            detail = f"{type(error).__name__}: {error}"[:200]
            yield Region(at, block.end, "corrupt", detail, locator={"row": [row, last]})
            return
        to = block.start + (block.end - block.start) * file.tell() // whole
        piece = value if isinstance(value, Region) else _piece(value, context, row)
        piece.start, piece.end, at = at, to, to
        if isinstance(piece, Region):
            piece.locator = {"row": [row, row]}
        elif piece.locator is None:
            piece.locator = {"row": row}
        yield piece
        if row % 1000 == 999:
            progress(0)
    if file.tell() < len(data):
        yield Region(
            at, block.end, "corrupt", "bytes left behind the last row of a block", locator={"row": [last, last]}
        )


def _piece(value: Any, context: Context, row: int) -> Record | Region:
    value = readable(value)
    if isinstance(value, dict):
        piece = rows.record(value, 0, 0, "utf-8", context.options, row)
    else:
        piece = rows.value(value, 0, 0, "utf-8", context.options)
    if isinstance(piece, Record) and len(piece.text) > context.limits.record_bytes:
        return Region(0, 0, "record-too-large", f"more than {context.limits.record_mb} MB in one row")
    return piece


def _value(file: io.BytesIO, schema: _Schema) -> Any:
    """The next row; a Region if it alone is bad. Raises what fastavro raises if it cannot be stepped over."""
    start = file.tell()
    try:
        return fastavro.schemaless_reader(file, schema.exact, None)
    except (ValueError, ArithmeticError) as error:  # UTF-8, or a date that no calendar has
        file.seek(start)
        fastavro.schemaless_reader(file, schema.skip, None, handle_unicode_errors="replace")
        reason = "undecodable" if isinstance(error, UnicodeDecodeError) else "corrupt"
        return Region(0, 0, reason, str(error)[:200])


class _Taken:
    """A stream as a file that gives all that is asked for or raises EOFError; never more than limit at once."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream, self.limit = stream, limit

    def read(self, n: int) -> bytes:
        if n > self.limit:
            raise ValueError(f"a value of {n:,} bytes")
        parts: list[bytes] = []
        while n > 0:
            part = self._stream.read(n)
            if not part:
                raise EOFError
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def number(self) -> int:
        """A long: zigzag, seven bits a byte, the lowest first."""
        value = shift = 0
        while True:
            byte = self.read(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")


def _null(data: bytes, _: int) -> bytes:
    return data


def _deflate(data: bytes, limit: int) -> bytes:
    return _ended(zlib.decompressobj(-15), data, limit)


def _bzip2(data: bytes, limit: int) -> bytes:
    return _ended(bz2.BZ2Decompressor(), data, limit)


def _xz(data: bytes, limit: int) -> bytes:
    return _ended(lzma.LZMADecompressor(), data, limit)


def _ended(codec: Any, data: bytes, limit: int) -> bytes:
    found = codec.decompress(data, limit)
    if not codec.eof:
        raise Refused("bomb" if len(found) >= limit else "corrupt", "does not end within its bytes, or is too large")
    return found


def _zstd(data: bytes, limit: int) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        return _within(reader.read(limit + 1), limit)


def _snappy(data: bytes, limit: int) -> bytes:
    """Snappy says its length in front, and a CRC of what comes out behind (Avro's own addition)."""
    size = shift = 0
    for byte in data[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > limit or size > 64 * len(data):  # three bytes of snappy copy 64 at most
        raise Refused("bomb", f"a block that expands to {size:,} bytes")
    found = cast(bytes, pa.decompress(data[:-4], decompressed_size=size, codec="snappy", asbytes=True))
    if zlib.crc32(found) != int.from_bytes(data[-4:], "big"):
        raise ValueError("its checksum is wrong")
    return found


def _within(found: bytes, limit: int) -> bytes:
    if len(found) > limit:
        raise Refused("bomb", f"a block that expands to more than {limit >> 20} MB")
    return found


def _duration(data: bytes, *_: Any) -> dict[str, int]:
    return dict(zip(("months", "days", "milliseconds"), struct.unpack("<3I", data), strict=True))


_CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "null": _null, "deflate": _deflate, "bzip2": _bzip2, "xz": _xz, "zstandard": _zstd, "snappy": _snappy,
}  # fmt: skip
# What fastavro hands over as it lies there.
LOGICAL_READERS["fixed-duration"] = _duration
LOGICAL_READERS["long-timestamp-nanos"] = lambda n, *_: values(pa.array([n], pa.timestamp("ns", "UTC")))[0]
LOGICAL_READERS["long-local-timestamp-nanos"] = lambda n, *_: values(pa.array([n], pa.timestamp("ns")))[0]
