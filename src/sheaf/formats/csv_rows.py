"""CSV and TSV: a record a row, at its exact bytes, streamed; quoted newlines. `csv_dialect` judges the first rows.

Rows are cut on bytes, which is right in every encoding that keeps ASCII's bytes to itself (UTF-8, and all legacy
encodings but ISO-2022 and HZ); UTF-16 and UTF-32 go through UTF-8. The encoding is judged on the first MB. A quote that
is opened and never closed refuses the rows that it swallows. A table without a header has columns column1, column2, …,
and the item's notes say so.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from sheaf.formats import rows, text
from sheaf.formats.csv_dialect import Dialect, cells, dialect, open_after
from sheaf.formats.encoding import MARKS, STATEFUL, WIDE, decode
from sheaf.formats.piece import Context, Pieces, Refused, Region
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
    names: list[str] | None = None if found.header else []
    delimiter, number = found.delimiter, 0
    for cut in _cuts(stream, context.limits.record_bytes, delimiter):
        if isinstance(cut, Region):
            names = names or []  # a header that cannot be read is none
            yield cut
            continue
        start, end, data = cut
        if start == 0:
            data = data.removeprefix(MARKS[0][0])
        try:
            fields = cells(data.decode(encoding), delimiter)
        except UnicodeDecodeError as error:
            names = names or []
            yield Region(start, end, "undecodable", f"not {encoding} at byte {error.start} of the row")
            continue
        except csv.Error as error:
            names = names or []
            yield Region(start, end, "bad-csv", str(error))
            continue
        if not fields:
            continue
        if names is None:
            names = []
            for field in fields:
                names.append(_name(field.strip(), names))
            continue
        while len(names) < len(fields):
            names.append(_name("", names))
        row = dict(zip(names, fields, strict=False))
        yield rows.record(row, start, end, encoding, context.options, number)
        number += 1


def _name(name: str, taken: list[str]) -> str:
    """The next column's name: no two are equal, or one would hide the other's values."""
    name = name or f"column{len(taken) + 1}"
    while name in taken:
        name += "_"
    return name


def _cuts(stream: Stream, limit: int, delimiter: str) -> Iterator[Cut | Region]:
    """Whole rows: lines, joined while a quoted field is open."""
    mark = delimiter.encode()
    open_lines: list[bytes] = []
    first = size = 0
    last = 0
    for line in rows.lines_or_refusals(stream, limit):
        if isinstance(line, Region):
            if open_lines:
                yield Region(first, line.start, "bad-csv", "a quoted field is never closed")
                open_lines = []
            yield line
            continue
        start, end, data = line
        last = end
        if not open_lines:
            if data.count(b'"') % 2 == 0 or not open_after(data, mark, False):
                yield start, end, data
                continue
            first, size = start, 0
        open_lines.append(data)
        size += len(data)
        if len(open_lines) > 1 and b'"' in data and not open_after(data, mark, True):
            yield first, end, b"".join(open_lines)
            open_lines = []
        elif size > limit:
            yield Region(first, end, "record-too-large", f"more than {limit >> 20} MB in one row")
            open_lines = []
    if open_lines:
        yield Region(first, last, "bad-csv", "a quoted field is never closed")


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
