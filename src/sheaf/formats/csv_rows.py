"""CSV and TSV: a record a row, at its exact bytes, streamed; quoted newlines, dialect by the first rows.

Rows are cut on bytes, which is right in every encoding that keeps ASCII's bytes to itself (UTF-8, and all legacy
encodings but ISO-2022 and HZ); UTF-16 and UTF-32 go through UTF-8. The encoding is judged on the first MB. A quote that
is opened and never closed refuses the rows that it swallows. The first row is the header if it has a word in it and no
name twice; else columns are named column1, column2, …
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator

from sheaf.formats import rows, text
from sheaf.formats.encoding import MARKS, STATEFUL, WIDE, decode
from sheaf.formats.piece import Context, Pieces, Refused, Region
from sheaf.formats.stream import Stream

HEAD = 1 << 20
DELIMITERS = (",", ";", "\t", "|")
Cut = tuple[int, int, bytes]

csv.field_size_limit(1 << 31)


def parse(stream: Stream, context: Context) -> Pieces:
    head = stream.peek(HEAD + 1)
    encoding = _encoding(head, context)
    if encoding in STATEFUL:
        yield from text.parse(stream, context)
    elif encoding in WIDE:
        yield from rows.transcoded(stream, context, encoding, parse)
    else:
        yield from _rows(stream, context, encoding, _dialect(head[:HEAD], encoding, context.kind))


def _rows(stream: Stream, context: Context, encoding: str, delimiter: str) -> Pieces:
    names: list[str] | None = None
    for cut in _cuts(stream, context.limits.record_bytes, delimiter):
        if isinstance(cut, Region):
            yield cut
            continue
        start, end, data = cut
        if start == 0:
            data = data.removeprefix(MARKS[0][0])
        try:
            cells = _cells(data.decode(encoding), delimiter)
        except UnicodeDecodeError as error:
            yield Region(start, end, "undecodable", f"not {encoding} at byte {error.start} of the row")
            continue
        except csv.Error as error:
            yield Region(start, end, "bad-csv", str(error))
            continue
        if not cells:
            continue
        if names is None:
            names = _header(cells)
            if names is not None:
                continue
            names = []
        while len(names) < len(cells):
            names.append(f"column{len(names) + 1}")
        yield rows.record(dict(zip(names, cells, strict=False)), start, end, encoding, context.options)


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
            if data.count(b'"') % 2 == 0 or not _open_after(data, mark, False):
                yield start, end, data
                continue
            first, size = start, 0
        open_lines.append(data)
        size += len(data)
        if len(open_lines) > 1 and b'"' in data and not _open_after(data, mark, True):
            yield first, end, b"".join(open_lines)
            open_lines = []
        elif size > limit:
            yield Region(first, end, "record-too-large", f"more than {limit >> 20} MB in one row")
            open_lines = []
    if open_lines:
        yield Region(first, last, "bad-csv", "a quoted field is never closed")


def _open_after(line: bytes, delimiter: bytes, inside: bool) -> bool:
    """Whether a quoted field is open at the end of the line, given whether one was at its start. A quote inside a bare
    field (5" disk) is a character like any other."""
    at = 0
    while True:
        if inside:
            close = line.find(b'"', at)
            if close < 0:
                return True
            if line[close + 1 : close + 2] == b'"':
                at = close + 2
                continue
            at = close + 1
        elif line[at : at + 1] == b'"':
            inside, at = True, at + 1
            continue
        following = line.find(delimiter, at)
        if following < 0:
            return False
        inside, at = False, following + 1


def _cells(row: str, delimiter: str) -> list[str]:
    """The fields of one row; none if it is blank."""
    row = row.rstrip("\r\n")
    if not row.strip():
        return []
    if '"' not in row:
        return row.split(delimiter)
    parts = csv.reader(io.StringIO(row, newline=""), delimiter=delimiter)
    return [cell for part in parts for cell in part]


def _header(cells: list[str]) -> list[str] | None:
    names = [cell.strip() or f"column{i + 1}" for i, cell in enumerate(cells)]
    words = any(not _number(name) for name in (c.strip() for c in cells) if name)
    return names if words and len(set(names)) == len(names) else None


def _number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


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


def _dialect(head: bytes, encoding: str, kind: str) -> str:
    """The separator which splits most of the first rows into the same number (two or more) of fields."""
    if kind == "text/tab-separated-values":
        return "\t"
    lines = [
        line
        for line in head[: 1 << 16].decode(encoding, "replace").lstrip("\ufeff").split("\n")[:50]
        if line.count('"') % 2 == 0
    ]
    best, best_score = ",", 0.0
    for mark in DELIMITERS:
        counts = Counter(len(_cells(line, mark)) for line in lines if line.strip())
        fields, times = max(counts.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
        score = times * min(fields - 1, 20) if fields > 1 else 0
        if score > best_score:
            best, best_score = mark, score
    return best
