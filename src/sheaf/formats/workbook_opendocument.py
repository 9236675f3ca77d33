"""OpenDocument spreadsheets, and OpenOffice.org's before them: rows of content.xml, in the memory of one row.

Equal cells and rows are written once with a count; what the count makes of them is counted against the item's budget,
as nothing else bounds it. A date is as it was written; a span under a day is a time of day, a longer
one is seconds; numbers are not rounded to what is shown. Comments, charts and the record of changes are left out.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

from sheaf.formats.office_xml import Element, Elements, attribute, forget, local
from sheaf.formats.package import Package
from sheaf.formats.piece import Context, Refused
from sheaf.formats.sheets import MOST_COLUMNS, Cells, Row

_TAGS = ("{*}table", "{*}table-row")
_NUMBERS = frozenset(("float", "percentage", "currency"))
_SPAN = re.compile(r"(-?)P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")


def open_sheets(package: Package, context: Context) -> Iterator[OpenSheet]:
    """The sheets, each to be read to its end before the next is asked for."""
    if b"encryption-data" in package.head("META-INF/manifest.xml", 8 << 20):
        raise Refused("encrypted", "a password is needed")
    content = package.find("content.xml")
    if content is None:
        raise Refused("truncated" if not package.whole else "corrupt", "it has no content.xml")
    elements = Elements(package, content, context, _TAGS, context.limits.record_bytes)
    events = elements.events()
    before = 0
    for event, element in events:
        if event == "start" and _is_sheet(element):
            sheet = OpenSheet(element, elements, events, before, context, package.size)
            yield sheet
            before = elements.taken
    if elements.problem is not None:
        yield OpenSheet(None, elements, events, before, context, package.size)


def _is_sheet(element: Element) -> bool:
    parent = element.getparent()
    return local(element) == "table" and parent is not None and local(parent) in ("spreadsheet", "body")


class OpenSheet:
    """table: None for what comes behind the last one, which cannot be read."""

    def __init__(
        self, table: Element | None, elements: Elements, events: Iterator[tuple[str, Element]], before: int,
        context: Context, size: int,
    ) -> None:  # fmt: skip
        self._table, self._elements, self._events, self._before = table, elements, events, before
        self._context, self._size, self._repeated = context, size, 0
        self.name = attribute(table, "name") if table is not None else ""
        self.problem: Refused | None = None if table is not None else elements.problem

    @property
    def packed(self) -> int:
        return self.taken

    @property
    def taken(self) -> int:
        return self._elements.taken - self._before

    def rows(self) -> Iterator[Row]:
        if self._table is None:
            return
        number = 0
        for event, element in self._events:
            if event == "start":
                continue
            if element is self._table:
                break
            if local(element) == "table-row":
                count = _count(element, "number-rows-repeated")
                cells = self._cells(element)
                forget(element)
                size = sum(map(_size, cells.values()))
                for n in range(count if cells else 0):
                    self._charge(size if n else 0)
                    yield number + n + 1, cells
                number += count
        else:
            self.problem = self._elements.problem
        forget(self._table)

    def _cells(self, row: Element) -> Cells:
        cells: Cells = {}
        column = 0
        for cell in row:
            if local(cell) not in ("table-cell", "covered-table-cell"):
                continue
            count = _count(cell, "number-columns-repeated")
            value = _value(cell)
            if value is not None and value != "":
                for n in range(min(count, MOST_COLUMNS - column)):
                    cells[column + n] = value
                if count > 1:
                    self._charge(count * _size(value))
            column = min(column + count, MOST_COLUMNS)
        return cells

    def _charge(self, more: int) -> None:
        self._repeated += more
        self._context.budget.expand(more, self._size, self._repeated)


def _size(value: Any) -> int:
    return 8 + len(value) if isinstance(value, str) else 8


def _count(element: Element, name: str) -> int:
    said = attribute(element, name)
    return max(1, int(said)) if said.isdecimal() and len(said) < 10 else 1


def _value(cell: Element) -> Any:
    kind = attribute(cell, "value-type") if cell.attrib else ""
    if kind in _NUMBERS:
        said = attribute(cell, "value")
        try:
            return float(said)
        except ValueError:
            return said
    if kind == "boolean":
        return attribute(cell, "boolean-value") == "true"
    if kind == "date":
        return attribute(cell, "date-value").replace("T", " ").removesuffix(" 00:00:00")
    if kind == "time":
        return _time(attribute(cell, "time-value"))
    texts = ["".join(_words(p)) for p in cell if local(p) == "p"]
    return "\n".join(texts) if texts else attribute(cell, "string-value")


def _time(said: str) -> Any:
    """A time of day, which OpenDocument writes as a span, or the seconds of a longer one."""
    found = _SPAN.fullmatch(said)
    if not found or not any(found.groups()[1:]):
        return said
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups()[1:])
    total = days * 86400 + hours * 3600 + minutes * 60 + seconds
    if found[1] or total >= 86400:
        return -total if found[1] else total
    return (datetime.datetime.min + datetime.timedelta(seconds=total)).time()


def _words(paragraph: Element) -> Iterator[str]:
    yield paragraph.text or ""
    for child in paragraph:
        name = local(child)
        if name == "s":
            yield " " * min(_count(child, "c"), 1000)
        elif name in ("tab", "line-break"):
            yield "\t" if name == "tab" else "\n"
        elif name not in ("annotation", "ruby-text", ""):
            yield from _words(child)
        yield child.tail or ""
