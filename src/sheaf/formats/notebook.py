"""Jupyter notebooks (nbformat 3 and 4): one record, at {"cells": [1, n]}, for what its author wrote.

Prose as Markdown, code in fences that name the language, so that a text and the code it explains stay together. Outputs
are left out: they are pictures and logs, and a run can make them again; their bytes count with the record. A cell that
is none is a region. A notebook that breaks off, or is no JSON somewhere, keeps the cells before that place. One that is
longer than a record may be becomes several, of whole cells. Memory: the notebook, and its JSON as objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import orjson

from sheaf.formats.charge import split
from sheaf.formats.encoding import decode
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream

_CELLS = re.compile(r'"cells"\s*:\s*\[')
_NEXT = re.compile(r"[\s,]*")
_SCANNER = json.JSONDecoder()
Cells = list[Any]


def parse(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(context.limits.document_bytes)
    text = decode(raw).text
    try:
        whole: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        yield from _broken(text, len(raw), error, context)
        return
    if not isinstance(whole, dict):
        raise Refused("corrupt", "not a notebook: no object")
    book = cast(dict[str, Any], whole)
    yield from _pieces(_cells(book), _language(book), len(raw), len(raw), context.limits.record_bytes)


def _pieces(cells: Cells, language: str, size: int, end: int, limit: int) -> Pieces:
    """The cells as records; size: bytes of the stream that they weigh together, of which end is the last."""
    records: list[tuple[str, list[int]]] = []
    bad: list[tuple[int, str]] = []
    for number, cell in enumerate(cells, 1):
        try:
            text = _cell_text(cell, language)
        except ValueError as error:
            bad.append((number, str(error)))
            continue
        if not text:
            continue
        if records and len(records[-1][0]) + len(text) < limit // 4:
            records[-1] = (f"{records[-1][0]}\n\n{text}", [records[-1][1][0], number])
        else:
            records.append((text, [number, number]))
    if not records and not bad:
        raise Refused("empty", "no cell holds text")
    if len(records) == 1:
        records = [(records[0][0], [1, len(cells)])]
    weights = split(size, [len(text) for text, _ in records] + [1 for _ in bad])
    for (text, span), weight in zip(records, weights[: len(records)], strict=True):
        yield Record(text, 0, end, "utf-8", weight=weight, locator={"cells": span})
    for (number, why), weight in zip(bad, weights[len(records) :], strict=True):
        yield Region(0, end, "corrupt", why, weight, {"cells": [number, number]})


def _cell_text(cell: Any, language: str) -> str:
    """Raises ValueError for what is no cell."""
    if not isinstance(cell, dict):
        raise ValueError("not a cell: no object")
    fields = cast(dict[str, Any], cell)
    kind = fields.get("cell_type")
    source = fields.get("source", fields.get("input"))  # nbformat 3 calls the source of code its input
    if isinstance(source, list):
        lines = cast(list[Any], source)
        if not all(isinstance(line, str) for line in lines):
            raise ValueError("its source holds something that is no text")
        source = "".join(lines)
    if not isinstance(source, str):
        raise ValueError("it has no source")
    if not source.strip():
        return ""
    if kind == "code":
        fence = "```"
        while fence in source:
            fence += "`"
        return f"{fence}{fields.get('language', language)}\n{source.rstrip()}\n{fence}"
    if kind == "heading":  # nbformat 3
        level = fields.get("level", 1)
        return f"{'#' * (level if isinstance(level, int) and 0 < level < 7 else 1)} {source.strip()}"
    return source.strip("\n")


def _cells(book: dict[str, Any]) -> Cells:
    """Raises Refused("corrupt")."""
    cells: Any = book.get("cells")
    if cells is None:
        sheets: Any = book.get("worksheets")  # nbformat 3
        if isinstance(sheets, list):
            found = (s.get("cells") for s in cast(list[Any], sheets) if isinstance(s, dict))
            cells = [cell for part in found if isinstance(part, list) for cell in part]
    if not isinstance(cells, list):
        raise Refused("corrupt", "not a notebook: no cells")
    return cast(Cells, cells)


def _language(book: dict[str, Any]) -> str:
    metadata: Any = book.get("metadata")
    for part, key in (("language_info", "name"), ("kernelspec", "language")):
        named: Any = metadata.get(part) if isinstance(metadata, dict) else None
        if isinstance(named, dict) and isinstance(named.get(key), str) and re.fullmatch(r"[\w+#.-]{1,30}", named[key]):
            return named[key]
    return ""


def _broken(text: str, size: int, error: orjson.JSONDecodeError, context: Context) -> Pieces:
    """The cells before the mistake, and the rest as a region."""
    found = _CELLS.search(text)
    cells: Cells = []
    at = found.end() if found else 0
    for cell, end in _scan(text, at) if found else ():
        cells.append(cell)
        at = end
    end = len(text[:at].encode()) if cells else 0
    why = f"line {error.lineno}, column {error.colno}: {error.msg}"
    if cells:
        with_text = [cell for cell in cells if _says_something(cell)]
        if with_text:
            yield from _pieces(cells, "", end, end, context.limits.record_bytes)
        else:
            end = 0
    cut = error.pos >= len(text.rstrip())
    yield Region(end, size, "truncated" if cut else "bad-json", why)


def _scan(text: str, at: int) -> Iterator[tuple[Any, int]]:
    """Cells of an array, each with where it ends, up to the first that is no JSON."""
    while True:
        blank = _NEXT.match(text, at)
        at = blank.end() if blank else at
        try:
            cell, at = _SCANNER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield cell, at


def _says_something(cell: Any) -> bool:
    try:
        return bool(_cell_text(cell, ""))
    except ValueError:
        return True
