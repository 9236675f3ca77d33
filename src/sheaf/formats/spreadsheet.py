"""Workbooks (XLSX, XLSM, XLSB, XLS, ODS): a record a row, {"sheet": name, "row": n}, n as the user sees it.

Cells are values: of a formula the one that was saved with it, whole numbers without a point, dates and times ISO 8601,
durations seconds; of merged cells the first has it. The first row with more than one filled cell is the header if it
reads like one (`csv_dialect.is_header`), and the item's notes say so; else columns have their letters. Lines above a
header are records of their own. Empty rows, charts and macros are structure; hidden sheets are read; embedded files
are members. A sheet that breaks off costs the rest of itself.

XLSX and ODS are streamed (`workbook_xml`, `workbook_opendocument`), 7 µs a cell; a row's share of its sheet's bytes
is what was expanded for it. The binary formats are held (`workbook_binary`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from sheaf.formats import rows, workbook_binary, workbook_opendocument, workbook_xml
from sheaf.formats.arrow_rows import merged
from sheaf.formats.arrow_values import readable, unique
from sheaf.formats.csv_dialect import ROWS, is_header
from sheaf.formats.office_text import embedded, files_under
from sheaf.formats.package import open_package
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.sheets import Cells, Sheet, letters
from sheaf.formats.stream import Stream, progress

TITLES = 10  # lines that may stand above a header


def parse_xlsx(stream: Stream, context: Context) -> Pieces:
    package = open_package(stream, context)
    inner = embedded(package, context, files_under(package, "xl/embeddings"))
    yield from _sheets(workbook_xml.open_sheets(package, context), stream, context, bool(inner))
    yield from inner


def parse_opendocument(stream: Stream, context: Context) -> Pieces:
    package = open_package(stream, context)
    objects = [entry.name for entry in package.entries if entry.name.startswith("Object ") and "/" not in entry.name]
    yield from _sheets(workbook_opendocument.open_sheets(package, context), stream, context, bool(objects))
    yield from embedded(package, context, objects)


def parse_binary(stream: Stream, context: Context) -> Pieces:
    yield from _sheets(workbook_binary.open_sheets(stream, context), stream, context)


def _sheets(sheets: Iterable[Sheet], stream: Stream, context: Context, more: bool = False) -> Pieces:
    """more: there is something in it besides sheets."""
    empty = not more
    for number, sheet in enumerate(sheets, 1):
        if number > context.limits.pages:
            raise Refused("bomb", f"more than {context.limits.pages:,} sheets")
        charged = 0
        for piece in merged(_rows(sheet, stream.position, context)):
            charged += max(piece.weight, 0) if isinstance(piece, (Record, Region)) else 0
            empty = False
            yield piece
        if sheet.problem:
            rest, why = max(1, sheet.packed - charged), sheet.problem
            yield Region(0, stream.position, why.reason, why.detail, rest, {"sheet": sheet.name})
            empty = False
    if empty:
        yield Region(0, stream.position, "empty", "no cell holds anything", 1)


def _rows(sheet: Sheet, end: int, context: Context) -> Iterator[Record | Region]:
    table = _weighed(sheet)
    head = list(itertools.islice(table, ROWS))
    first, names = _header([(number, cells) for number, cells, _ in head if isinstance(cells, dict)], sheet, context)
    number = 0
    for row, cells, weight in itertools.chain(head, table):
        if row == first:
            continue
        if isinstance(cells, Refused):
            piece: Record | Region = Region(0, end, cells.reason, cells.detail)
        else:
            named = {names.of(column, row > first): cells[column] for column in sorted(cells)}
            piece = _piece(named, row > first > 0, end, number, context)
        piece.weight = weight
        if isinstance(piece, Region):
            piece.locator = {"sheet": sheet.name, "row": [row, row]}
        elif piece.locator is None:
            piece.locator = {"sheet": sheet.name, "row": row}
        yield piece
        number += 1
        if number % 1000 == 0:
            progress(0)


def _weighed(sheet: Sheet) -> Iterator[tuple[int, Cells | Refused, int]]:
    """The rows with their weights: those that came out of the file together share what was taken of it."""
    before = 0
    for taken, group in itertools.groupby(((sheet.taken, row) for row in sheet.rows()), key=lambda one: one[0]):
        together = [row for _, row in group]
        gain, count = max(0, taken - before), len(together)
        for n, (number, cells) in enumerate(together):
            if isinstance(cells, dict):
                cells = {column: _value(cell) for column, cell in cells.items()}
            yield number, cells, gain * (n + 1) // count - gain * n // count
        before = max(before, taken)


def _piece(cells: rows.Row, named: bool, end: int, number: int, context: Context) -> Record | Region:
    """A row; one cell alone, of a column without a name, is a line of text."""
    options = context.options
    if len(cells) == 1 and not named and not (rows.wanted(options) or options.map or options.raw_rows or options.key):
        return Record(rows.render(next(iter(cells.values()))), 0, end, "utf-8")
    return rows.record(cells, 0, end, "utf-8", options, number)


class _Names:
    """Columns' names: those that a header gives, else their letters."""

    def __init__(self, given: dict[int, str]) -> None:
        self._given = given
        self._taken = set(given.values())

    def of(self, column: int, below: bool) -> str:
        """below: the header."""
        if not below:
            return letters(column)
        if column not in self._given:
            name = letters(column)
            while name in self._taken:
                name += "_"
            self._given[column] = name
            self._taken.add(name)
        return self._given[column]


def _header(head: list[tuple[int, Cells]], sheet: Sheet, context: Context) -> tuple[int, _Names]:
    """(the number of the row that is the header, or 0; the columns' names)."""
    columns = sorted({column for _, cells in head for column in cells})
    words = [[rows.render(cells.get(column)) for column in columns] for _, cells in head]
    first = next((n for n, (_, cells) in enumerate(head[:TITLES]) if len(cells) > 1), 0)
    if not words or not _is_header(head[first][1], words, first, context):
        return 0, _Names({})
    number = head[first][0]
    names = unique([word.strip() or letters(column) for word, column in zip(words[first], columns, strict=True)])
    if len(context.notes) < TITLES:
        context.notes.append(f"sheet {sheet.name}: columns named by row {number}")
    return number, _Names(dict(zip(columns, names, strict=True)))


def _is_header(cells: Cells, words: list[list[str]], first: int, context: Context) -> bool:
    wanted = rows.wanted(context.options)
    if wanted and {word.strip() for word in words[first]}.issuperset(wanted):
        return True
    return all(isinstance(cell, str) for cell in cells.values()) and is_header(words[first], words[first + 1 :])


def _value(cell: Any) -> Any:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1 << 53:
        return int(cell)
    return readable(cell)
