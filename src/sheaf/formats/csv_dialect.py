"""What a table looks like, judged by its first rows: the separator, and whether row 1 is a header.

Separator: each candidate cuts the first 64 KB (100 rows at most) into rows by its own quoting. The one in whose rows
most lines have as many fields as row 1 wins, then the one with more fields, then tab, semicolon, bar, comma: commas are
what prose and decimals hold. Where semicolons cut well, commas do not cut if each stands in a number or before a blank.
Header: row 1 is one only if it reads like names and unlike the rows below it, for a row that is taken for a header by
mistake is lost, while a header that is taken for a row is one odd record.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass

from sheaf.formats.rows import TEXT_COLUMNS

DELIMITERS = ("\t", ";", "|", ",")
SAMPLE = 1 << 16
ROWS = 100
NAME_CHARACTERS = 40
# Names so common that one of them makes a header, even where no type of value differs below.
KNOWN = frozenset(TEXT_COLUMNS) | frozenset(
    ("id", "uuid", "key", "index", "name", "title", "subject", "url", "uri", "link", "path", "file", "filename", "date",
     "time", "timestamp", "created_at", "author", "user", "username", "email", "label", "lang", "language", "source",
     "category", "tag", "tags", "question", "answer", "prompt", "response", "instruction", "input", "output", "comment",
     "comments", "message", "description", "summary", "sentence", "review", "rating", "score")
)  # fmt: skip
_NUMBER = re.compile(r"[-+]?[$€£¥]?\d[\d.,' \u00a0]*(?:[eE][-+]?\d+)?\s?[%€]?")
_MISSING = frozenset({"", "-", "?", "na", "n/a", "nan", "null", "none", "nil"})
_SENTENCE = re.compile(r"[.!?…。！？]\s|[.!?…。！？]$|[\r\n]")
_BARE_COMMA = re.compile(r",(?!\s|(?<=\d,)\d)")
_GENERIC = re.compile(r"column\d+")
Rows = list[list[str]]

csv.field_size_limit(1 << 31)


@dataclass(frozen=True, slots=True)
class Dialect:
    delimiter: str
    header: bool


def dialect(head: bytes, encoding: str, kind: str, wanted: tuple[str, ...]) -> Dialect:
    """wanted: the columns that the recipe names. A header that has them is one; if they are not there, row 1 is still
    the header, and the rows are refused for want of them, rather than read as something else."""
    text = head[:SAMPLE].decode(encoding, "replace").removeprefix("\ufeff")
    if len(head) >= SAMPLE:
        text = text[: text.rfind("\n") + 1]
    delimiter = "\t" if kind == "text/tab-separated-values" else _delimiter(text)
    rows = [row for row, _ in _sample(text, delimiter)]
    if wanted and rows:
        names = {cell.strip() for cell in rows[0]}
        return Dialect(delimiter, names.issuperset(wanted) or not all(_GENERIC.fullmatch(name) for name in wanted))
    return Dialect(delimiter, bool(rows) and is_header(rows[0], rows[1:]))


def cells(row: str, delimiter: str) -> list[str]:
    """The fields of one row; none if it is blank. Raises csv.Error."""
    row = row.rstrip("\r\n")
    if not row.strip():
        return []
    if '"' not in row:
        return row.split(delimiter)
    parts = csv.reader(io.StringIO(row, newline=""), delimiter=delimiter)
    return [cell for part in parts for cell in part]


def open_after(line: bytes, delimiter: bytes, inside: bool) -> bool:
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


def is_header(first: list[str], below: Rows) -> bool:
    names = [cell.strip() for cell in first]
    filled = [name for name in names if name]
    if not filled or len(set(filled)) < len(filled) or not all(map(_like_a_name, filled)):
        return False
    if not below:
        return all(name.lower() in KNOWN for name in names)
    under = [[row[i].strip() for row in below if i < len(row)] for i in range(len(names))]
    # pandas writes an index under an empty name, and a separator at the end of each line makes an empty column
    if not all(name or _numbers(values) or not any(values) for name, values in zip(names, under, strict=True)):
        return False
    return any(_unlike(name, values) for name, values in zip(names, under, strict=True) if name)


def _like_a_name(cell: str) -> bool:
    return len(cell) < NAME_CHARACTERS and not _NUMBER.fullmatch(cell) and not _SENTENCE.search(cell)


def _unlike(name: str, values: list[str]) -> bool:
    """Whether the column below shows that the cell above it is its name."""
    values = [value for value in values if value.lower() not in _MISSING]
    if name.lower() in _MISSING or name in values:
        return False
    if name.lower() in KNOWN:
        return True
    if _numbers(values):
        return True
    if len(values) < 3:  # two rows are alike, or not, by chance
        return False
    long = sum(len(value) >= NAME_CHARACTERS for value in values) >= 0.9 * len(values)
    digits = not any(map(str.isdigit, name)) and all(any(map(str.isdigit, value)) for value in values)
    phrases = " " not in name and all(" " in value for value in values)
    return digits or phrases or (long and len(name.split()) <= 3)


def _numbers(values: list[str]) -> bool:
    return bool(values) and all(map(_NUMBER.fullmatch, values))


def _delimiter(text: str) -> str:
    best, best_score = ",", (0.0, 0.0, 0)
    for mark in DELIMITERS:
        rows = _sample(text, mark)
        if not rows or (mark == "," and best == ";" and best_score[1] > 0.9 and not _BARE_COMMA.search(text)):
            continue
        weights = Counter[int]()
        for row, lines in rows:
            weights[len(row)] += lines
        fields = len(rows[0][0])
        agreed = fields > 1
        if not agreed:  # a title above the table: then by what most rows have
            fields = max(weights, key=lambda n: (weights[n], n))
        share = weights[fields] / weights.total() if fields > 1 else 0.0
        score = (float(agreed and share > 0), share, fields)
        if fields > 1 and score > best_score:
            best, best_score = mark, score
    return best


def _sample(text: str, delimiter: str) -> list[tuple[list[str], int]]:
    """The first rows, and the lines that each takes. What is never closed is a row without fields."""
    rows: list[tuple[list[str], int]] = []
    held: list[str] = []
    mark = delimiter.encode()
    for line in io.StringIO(text, newline="\n"):
        if len(rows) >= ROWS:
            return rows
        if not held and not line.strip():
            continue
        inside = open_after(line.encode("utf-8", "replace"), mark, bool(held))
        held.append(line)
        if not inside:
            try:
                rows.append((cells("".join(held), delimiter), len(held)))
            except csv.Error:
                rows.append(([], len(held)))
            held = []
    if held:
        rows.append(([], len(held)))
    return rows
