"""CSV and TSV: a record a row, at its exact bytes, streamed; quoted newlines. `csv_dialect` judges the first rows.

Rows are cut on bytes, which is right in every encoding that keeps ASCII's bytes to itself (UTF-8, and all legacy
encodings but ISO-2022 and HZ); UTF-16 and UTF-32 go through UTF-8. The encoding is judged on the first MB. A quote that
is opened and never closed refuses the rows that it swallows. A table without a header has columns column1, column2, …,
and the item's notes say so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

import numpy as np

from sheaf.formats import fast, rows, text
from sheaf.formats.csv_dialect import Dialect, cells, dialect, open_after
from sheaf.formats.encoding import MARKS, STATEFUL, WIDE, decode
from sheaf.formats.piece import Batch, Columns, Context, ParseOptions, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream

HEAD = 1 << 20
Cut = tuple[int, int, bytes]


def parse(stream: Stream, context: Context) -> Pieces:
    head = stream.peek(HEAD + 1)
    encoding = _encoding(head, context)
    if encoding in STATEFUL:
        yield from text.parse(stream, context)
    elif encoding in WIDE:
        yield from rows.transcoded(stream, context, encoding, parse)
    else:
        found = dialect(head, encoding, context.kind, rows.wanted(context.options))
        if head and not found.header:
            context.notes.append("no header" if context.depth == 0 else f"{context.name}: no header")
        yield from _rows(stream, context, encoding, found)


def _rows(stream: Stream, context: Context, encoding: str, found: Dialect) -> Pieces:
    """Row by row; or by blocks of whole lines, where every line is a row like the others; or by a kernel."""
    options, limit = context.options, context.limits.record_bytes
    cuts = _Cuts(found.delimiter, limit)
    names: list[str] | None = None if found.header else []
    number = 0

    def columns(first: int, block: bytes) -> Columns | None:
        from sheaf.formats import kernel_rows  # here: see `fast`

        if not names or cuts.open:
            return None
        return kernel_rows.csv_columns(first, block, found.delimiter, names, options.text, limit)

    def otherwise(first: int, last: int, block: bytes | None) -> Pieces:
        nonlocal names, number
        if names and block is not None and not cuts.open and by_blocks:
            batch = _batch(first, block, found.delimiter, names, options)
            if batch is not None:
                yield batch
                return
        for cut in cuts.of(first, last, block):
            piece, names = _piece(cut, encoding, found.delimiter, names, options, number)
            if piece is not None:
                yield piece
                number += not isinstance(cut, Region)

    by_blocks = encoding == "utf-8" and rows.plain(options)
    for first, last, block in _headed(stream, limit, found.header):
        if block is not None and by_blocks and not context.about and fast.worth(len(block)):
            yield from rows.by_kernels(first, block, columns, otherwise)
        else:
            yield from otherwise(first, last, block)
    if (unclosed := cuts.end()) is not None:
        yield unclosed


def _headed(stream: Stream, limit: int, header: bool) -> Iterator[tuple[int, int, bytes | None]]:
    """The stream's blocks; a header's line by itself, so that the rows behind it come together."""
    for first, last, block in stream.blocks(limit, rows.at_once(limit)):
        cut = block.find(b"\n") + 1 if block is not None and header and first == 0 else 0
        if block is not None and cut:
            yield first, first + cut, block[:cut]
            first, block = first + cut, block[cut:]
        if block is None or block:
            yield first, last, block


def _batch(start: int, block: bytes, delimiter: str, names: list[str], options: ParseOptions) -> Batch | None:
    """The lines of a block as records; None if one of them is no row, or has another number of fields."""
    returns = block.count(b"\r")
    try:
        text = block.decode()
    except UnicodeDecodeError:
        return None
    if returns and (returns != block.count(b"\r\n") or returns != block.count(b"\n")):
        return None
    lines = text.split("\r\n" if returns else "\n")
    if not lines[-1]:
        lines.pop()
    fields = _quoted(lines, delimiter) if '"' in text else [line.split(delimiter) for line in lines]
    if fields is None or not lines or set(map(len, fields)) != {len(names)} or not all(map(str.strip, lines)):
        return None
    values = [dict(zip(names, cells, strict=True)) for cells in fields]
    texts = rows.take_texts(values, options)
    if texts is None:
        return None
    sizes = map(len, lines if text.isascii() else block.split(b"\n"))
    ends = start + np.cumsum(np.fromiter(sizes, np.int64, len(lines)) + (2 if returns and text.isascii() else 1))
    starts = np.append(start, ends[:-1])
    ends[-1] = start + len(block)
    return Batch(texts, starts, ends, "utf-8", values)


def _quoted(lines: list[str], delimiter: str) -> list[list[str]] | None:
    """The fields of each line; None if a quoted field spans several, or ends before the next separator."""
    try:
        fields = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return fields if len(fields) == len(lines) else None


def _piece(
    cut: Cut | Region, encoding: str, delimiter: str, names: list[str] | None, options: ParseOptions, number: int
) -> tuple[Record | Region | None, list[str] | None]:
    """What a row gives, and the columns' names, which it may add to; None for a header and for a blank line."""
    if isinstance(cut, Region):
        return cut, names or []  # a header that cannot be read is none
    start, end, data = cut
    if start == 0:
        data = data.removeprefix(MARKS[0][0])
    try:
        fields = cells(data.decode(encoding), delimiter)
    except UnicodeDecodeError as error:
        return Region(start, end, "undecodable", f"not {encoding} at byte {error.start} of the row"), names or []
    except csv.Error as error:
        return Region(start, end, "bad-csv", str(error)), names or []
    if not fields:
        return None, names
    if names is None:
        names = []
        for field in fields:
            names.append(_name(field.strip(), names))
        return None, names
    while len(names) < len(fields):
        names.append(_name("", names))
    row = dict(zip(names, fields, strict=False))
    return rows.record(row, start, end, encoding, options, number), names


def _name(name: str, taken: list[str]) -> str:
    """The next column's name: no two are equal, or one would hide the other's values."""
    name = name or f"column{len(taken) + 1}"
    while name in taken:
        name += "_"
    return name


class _Cuts:
    """Whole rows: lines, joined while a quoted field is open."""

    def __init__(self, delimiter: str, limit: int) -> None:
        self._mark, self._limit = delimiter.encode(), limit
        self._first = self._last = self._size = 0
        self.open: list[bytes] = []

    def of(self, start: int, end: int, block: bytes | None) -> Iterator[Cut | Region]:
        """The rows that end in a block of the stream."""
        for line in rows.cut(start, end, block, self._limit):
            if isinstance(line, Region):
                if self.open:
                    yield Region(self._first, line.start, "bad-csv", "a quoted field is never closed")
                    self.open = []
                yield line
            else:
                yield from self._line(*line)

    def end(self) -> Region | None:
        if not self.open:
            return None
        return Region(self._first, self._last, "bad-csv", "a quoted field is never closed")

    def _line(self, start: int, end: int, data: bytes) -> Iterator[Cut | Region]:
        self._last = end
        if not self.open:
            if b'"' not in data or not open_after(data, self._mark, False):
                yield start, end, data
                return
            self._first, self._size = start, 0
        self.open.append(data)
        self._size += len(data)
        if len(self.open) > 1 and b'"' in data and not open_after(data, self._mark, True):
            yield self._first, end, b"".join(self.open)
            self.open = []
        elif self._size > self._limit:
            yield Region(self._first, end, "record-too-large", f"more than {self._limit >> 20} MB in one row")
            self.open = []


def _encoding(head: bytes, context: Context) -> str:
    sample = head
    if len(head) > HEAD:  # not in the middle of a character
        sample = head[: head.rfind(b"\n", 0, HEAD) + 1] or head[: HEAD // 4 * 4]
        if head[1:2] == b"\0" or head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            sample = head[: HEAD // 4 * 4]
    try:
        return decode(sample, text.charset_of(context.media)).encoding
    except Refused:
        if not _mostly_utf8(sample):
            raise
        return "utf-8"


def _mostly_utf8(sample: bytes) -> bool:
    """A table with some bad rows: those rows alone are refused, whatever their share, as long as most are good."""
    if b"\0" in sample:
        return False
    lines = sample.split(b"\n")
    bad = sum(_undecodable(line) for line in lines)
    return bad * 2 < len(lines)


def _undecodable(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False
