"""XLSX and its kin (SpreadsheetML, ECMA-376 part 1): sheets row by row out of the zip, in the memory of one row.

Cells name their texts by number in one part that all sheets share; that is held, packed, up to a quarter of the memory.
What a number means is its style's: dates count days from 1900 or 1904 (with the day in 1900 that never was), durations
days too. Errors such as #DIV/0! are no value. A row that is broken costs itself; broken XML costs what follows.
"""

from __future__ import annotations

import datetime
import math
import re
from array import array
from collections.abc import Iterator
from typing import Any

from sheaf.formats.office_xml import (
    SMALL,
    Element,
    Elements,
    Relations,
    attribute,
    forget,
    local,
    main_part,
    parse,
    related,
)  # fmt: skip
from sheaf.formats.package import Entry, Package
from sheaf.formats.piece import Context, Refused
from sheaf.formats.sheets import Cells, Row, column_of

_NUMBERED = re.compile(r"(\d+)\.xml$")
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_NOT_CODE = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?![hmsHMS]+\])[^\]]*\]')  # literals, colours, currencies, conditions
_DURATION = re.compile(r"\[(?:h+|m+|s+)\]", re.I)
_WHEN = re.compile(r"[dyhs]|m", re.I)
_NUMBER, _DATE, _SPAN = 0, 1, 2
_BUILT_IN = {n: _DATE for n in (*range(14, 23), *range(27, 37), 45, 47, *range(50, 59))} | {46: _SPAN}
_LAST_DAY = 2_958_466  # the one after 9999-12-31


def open_sheets(package: Package, context: Context) -> Iterator[XmlSheet]:
    """The worksheets, as the workbook lists them; without a list that can be read, all that are there."""
    try:
        workbook = main_part(package, context, "xl/workbook.xml")
        root = parse(package.read(workbook, context, SMALL).data)
    except Refused as refused:
        if refused.reason in ("bomb", "encrypted"):
            raise
        workbook, root = None, None
    elements = list(root.iter()) if root is not None else []
    since_1904 = any(local(e) == "workbookPr" and attribute(e, "date1904") in ("1", "true") for e in elements)
    cells = _Values(package, context, workbook.name if workbook else "xl/workbook.xml", since_1904)
    listed = [(attribute(e, "name"), related(e)) for e in elements if local(e) == "sheet"]
    relations = Relations(package, workbook.name, context) if workbook and listed else None
    if relations is None:
        found = [(int(n[1]), e) for e in package.under("xl/worksheets") if (n := _NUMBERED.search(e.name))]
        for _, entry in sorted(found, key=lambda one: one[0]):
            yield XmlSheet(entry.name.rpartition("/")[2].removesuffix(".xml"), package, entry, context, cells)
        if not found:
            raise Refused("truncated" if not package.whole else "corrupt", "it has no sheets")
    else:
        for name, number in listed:
            if relations.kind(number) != "chartsheet":
                yield XmlSheet(name, package, package.find(relations.target(number)), context, cells)


class XmlSheet:
    def __init__(self, name: str, package: Package, entry: Entry | None, context: Context, values: _Values) -> None:
        self.name = name
        self._values = values
        self._read: Elements | None = None
        self.packed = 0
        self.problem: Refused | None = None
        if entry is None:
            self.problem = Refused("corrupt" if package.whole else "truncated", "its part is missing")
        else:
            self.packed = max(entry.packed, 0)
            self._read = Elements(package, entry, context, ("{*}row",), context.limits.record_bytes, ends=True)

    @property
    def taken(self) -> int:
        return self._read.taken if self._read else 0

    def rows(self) -> Iterator[Row]:
        if self._read is None:
            return
        number = 0
        for _, element in self._read.events():
            said = element.get("r", "")
            number = int(said) if said.isdecimal() and len(said) < 9 else number + 1
            cells = self._cells(element)
            forget(element)
            if cells:
                yield number, cells
        self.problem = self._read.problem

    def _cells(self, row: Element) -> Cells | Refused:
        cells: Cells = {}
        column = -1
        for cell in row:
            place = cell.get("r")
            column = column + 1 if place is None else column_of(place)
            try:
                value = self._values.of(cell)
            except Refused as refused:
                return refused
            if value is not None and value != "" and column >= 0:
                cells[column] = value
        return cells


class _Values:
    """What cells hold, for all sheets of a workbook."""

    def __init__(self, package: Package, context: Context, workbook: str, since_1904: bool) -> None:
        folder = workbook.rpartition("/")[0]
        styles = package.find(f"{folder}/styles.xml")
        self._styles = _styles(parse(package.read(styles, context, SMALL).data)) if styles else []
        self._epoch = datetime.datetime(1904, 1, 1) if since_1904 else datetime.datetime(1899, 12, 30)
        self._texts = _Texts(package, package.find(f"{folder}/sharedStrings.xml"), context)

    def of(self, cell: Element) -> Any:
        """None: nothing. Raises Refused if what it names is not there."""
        kind = cell.get("t", "n")
        if kind == "inlineStr":
            return _text(cell)
        word = None
        for child in cell:
            if local(child) == "v":
                word = child.text
        if not word or kind == "e":
            return None
        if kind == "s":
            return self._texts.at(word)
        if kind == "b":
            return word.strip() in ("1", "true")
        if kind == "str":
            return _unescaped(word)
        return word.replace("T", " ").removesuffix(" 00:00:00") if kind == "d" else self._number(word, cell.get("s"))

    def _number(self, word: str, style: str | None) -> Any:
        try:
            number = float(word)
        except ValueError:
            return word
        kind = self._styles[int(style)] if style and style.isdecimal() and int(style) < len(self._styles) else _NUMBER
        if kind == _SPAN and math.isfinite(number):
            return round(number * 86400, 3)
        return self._moment(number) if kind == _DATE else number

    def _moment(self, days: float) -> Any:
        if not 0 <= days < _LAST_DAY:
            return days
        since = datetime.timedelta(milliseconds=round(days * 86_400_000))
        if days < 1:
            return (datetime.datetime.min + since).time()
        if self._epoch.year == 1899 and days < 60:  # 60 is 1900-02-29
            since += datetime.timedelta(1)
        moment = self._epoch + since
        return moment.date() if days.is_integer() else moment


class _Texts:
    """The shared texts in one piece. Raises Refused("memory") if they are too large to be held."""

    def __init__(self, package: Package, entry: Entry | None, context: Context) -> None:
        self._bytes, self._ends = bytearray(), array("Q", [0])
        self._why = Refused("corrupt", "a text that the workbook does not have")
        if entry is None:
            return
        most = context.limits.memory_mb << 18
        elements = Elements(package, entry, context, ("{*}si",), context.limits.record_bytes, ends=True)
        for _, element in elements.events():
            self._bytes += _text(element).encode()
            self._ends.append(len(self._bytes))
            forget(element)
            if len(self._bytes) + 8 * len(self._ends) > most:
                raise Refused("memory", f"the sheets share more than {most >> 20} MB of text")
        self._why = elements.problem or self._why

    def at(self, word: str) -> str:
        number = int(word) if word.isdecimal() else -1
        if not 0 <= number < len(self._ends) - 1:
            raise self._why
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode()


def _text(element: Element) -> str:
    """Of plain or rich text, without the reading that East Asian texts may carry."""
    if len(element) == 1 and local(element[0]) == "t":
        return _unescaped(element[0].text or "")
    parts = (e.text or "" for e in element.iter() if local(e) == "t" and local(e.getparent()) != "rPh")
    return _unescaped("".join(parts))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_character, text) if "_x" in text else text


def _character(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    return "" if (code < 32 and code not in (9, 10, 13)) or 0xD800 <= code < 0xE000 else chr(code)


def _styles(root: Element | None) -> list[int]:
    """What numbers of each style are."""
    codes: dict[str, str] = {}
    formats: list[str] = []
    for element in root.iter() if root is not None else ():
        name = local(element)
        if name == "numFmt":
            codes[element.get("numFmtId", "")] = element.get("formatCode", "")
        elif name == "xf" and local(element.getparent()) == "cellXfs":
            formats.append(element.get("numFmtId", "0"))
    return [_meaning(number, codes.get(number)) for number in formats]


def _meaning(number: str, code: str | None) -> int:
    if code is None:
        return _BUILT_IN.get(int(number), _NUMBER) if number.isdecimal() else _NUMBER
    code = _NOT_CODE.sub("", code.partition(";")[0])
    if _DURATION.search(code):
        return _SPAN
    return _DATE if _WHEN.search(code) and "general" not in code.lower() else _NUMBER
