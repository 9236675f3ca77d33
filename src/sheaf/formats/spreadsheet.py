"""Workbooks (XLSX, XLSM, XLSB, XLS, ODS): a record a row, {"sheet": name, "row": n}, n as the user sees it.

Cells are values: of a formula the one that was saved with it, whole numbers without a point, dates and times ISO 8601,
durations seconds; of merged cells the first has it. The first row with more than one filled cell is the header if it
reads like one (`csv_dialect.is_header`), and the item's notes say so; else columns have their letters. Lines above a
header are records of their own. Empty rows, charts and macros are structure; hidden sheets are read.

Over calamine (MIT), which holds a sheet as a full grid of cells at 32 bytes, twice: a cell at the far corner of an
otherwise small sheet would take 500 GB. A sheet whose filled cells span more than the memory allows is refused before.
A sheet's share of the bytes is equal, and a row's in it.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import python_calamine as calamine

from sheaf.formats import ole, rows
from sheaf.formats.arrow_rows import merged
from sheaf.formats.arrow_values import readable, unique
from sheaf.formats.csv_dialect import ROWS, is_header
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.seekable import seekable
from sheaf.formats.stream import BLOCK, Stream, progress

CELL_BYTES = 64
TITLES = 10  # lines that may stand above a header
_SHEETS = (calamine.SheetTypeEnum.WorkSheet, calamine.SheetTypeEnum.MacroSheet, calamine.SheetTypeEnum.DialogSheet)
_FILLED = re.compile(rb"<(?:\w+:)?c [^>]{0,200}?r=\"([A-Z]{1,3})(\d{1,7})\"[^>]{0,200}?[^/]>")
_DIMENSION = re.compile(rb"<(?:\w+:)?dimension [^>]{0,100}?ref=\"(?:[A-Z]{1,3}\d{1,7}:)?([A-Z]{1,3})(\d{1,7})\"")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError)
_FILEPASS, _EOF = 0x2F, 0x0A
Row = list[Any]
T = TypeVar("T")


def parse(stream: Stream, context: Context) -> Pieces:
    file, size = seekable(stream, context)
    if size > context.limits.document_bytes:
        raise Refused("record-too-large", f"a workbook of more than {context.limits.document_bytes >> 20} MB")
    data = file.read()
    _guard(data, context)
    book = _calamine(lambda: calamine.CalamineWorkbook.from_filelike(io.BytesIO(data)))
    sheets = [sheet.name for sheet in book.sheets_metadata if sheet.typ in _SHEETS]
    if len(sheets) > context.limits.pages:
        raise Refused("bomb", f"more than {context.limits.pages:,} sheets")
    for n, name in enumerate(sheets):
        start, end = size * n // len(sheets), size * (n + 1) // len(sheets)
        try:
            sheet = _calamine(lambda name=name: book.get_sheet_by_name(name))
        except Refused as refused:
            yield Region(start, end, refused.reason, refused.detail, locator={"sheet": name})
            continue
        yield from merged(_sheet(sheet, start, end, context))


def _sheet(sheet: calamine.CalamineSheet, start: int, end: int, context: Context) -> Iterator[Record | Region]:
    table = _filled(sheet)
    head = list(itertools.islice(table, ROWS))
    first, letters, names = _header(head, sheet, context)
    last, at, number = (sheet.end or (0, 0))[0] + 1, start, 0
    for n, (row, cells) in enumerate(itertools.chain(head, table)):
        to = start + (end - start) * row // max(last, row)
        if n != first - 1:
            named = zip(names if n >= first else letters, cells, strict=True)
            row_cells = {name: cell for name, cell in named if cell is not None}
            piece = _piece(row_cells, n >= first > 0, at, to, number, context)
            if isinstance(piece, Region):
                piece.locator = {"sheet": sheet.name, "row": [row, row]}
            elif piece.locator is None:
                piece.locator = {"sheet": sheet.name, "row": row}
            yield piece
            number += 1
        if n % 1000 == 999:
            progress(0)
        at = to


def _piece(cells: rows.Row, named: bool, start: int, end: int, number: int, context: Context) -> Record | Region:
    """A row; one cell alone, of a column without a name, is a line of text."""
    options = context.options
    if len(cells) == 1 and not named and not (rows.wanted(options) or options.map or options.raw_rows or options.key):
        return Record(rows.render(next(iter(cells.values()))), start, end, "utf-8")
    return rows.record(cells, start, end, "utf-8", options, number)


def _filled(sheet: calamine.CalamineSheet) -> Iterator[tuple[int, Row]]:
    """(row number from 1, cells) of the rows that hold something."""
    for number, row in enumerate(sheet.iter_rows(), 1):
        cells = [_value(cell) for cell in row]
        if any(cell is not None for cell in cells):
            yield number, cells


def _header(
    head: list[tuple[int, Row]], sheet: calamine.CalamineSheet, context: Context
) -> tuple[int, list[str], list[str]]:
    """(how many of the first rows are header and what stands above it, the columns' letters, their names)."""
    left = (sheet.start or (0, 0))[1]
    letters = [_letters(left + n) for n in range(max((len(cells) for _, cells in head), default=0))]
    words = [[rows.render(cell) for cell in cells] for _, cells in head]
    first = next((n for n, row in enumerate(words[:TITLES]) if sum(map(bool, row)) > 1), 0)
    if not words or not _is_header(head[first][1], words, first, context):
        return 0, letters, letters
    names = [word.strip() or letter for word, letter in zip(words[first], letters, strict=True)]
    if len(context.notes) < TITLES:
        context.notes.append(f"sheet {sheet.name}: columns named by row {head[first][0]}")
    return first + 1, letters, unique(names)


def _is_header(cells: Row, words: list[list[str]], first: int, context: Context) -> bool:
    wanted = rows.wanted(context.options)
    if wanted and {word.strip() for word in words[first]}.issuperset(wanted):
        return True
    return all(cell is None or isinstance(cell, str) for cell in cells) and is_header(words[first], words[first + 1 :])


def _value(cell: Any) -> Any:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1 << 53:
        return int(cell)
    return None if cell == "" else readable(cell)


def _letters(column: int) -> str:
    """0 → A, 25 → Z, 26 → AA."""
    name = ""
    column += 1
    while column:
        column, letter = divmod(column - 1, 26)
        name = chr(65 + letter) + name
    return name


def _calamine(call: Callable[[], T]) -> T:
    """A panic of the Rust library is an exception that only BaseException catches; it costs what was asked for."""
    try:
        return call()
    except calamine.PasswordError:
        raise Refused("encrypted", "a password is needed") from None
    except (calamine.CalamineError, OSError, ValueError) as error:
        raise Refused("corrupt", f"not a workbook that can be opened: {error}"[:200]) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Refused("corrupt", f"the reader gave up: {error}"[:200]) from None


def _guard(data: bytes, context: Context) -> None:
    """Refuse what the library would not survive. Raises Refused."""
    if data.startswith(ole.MAGIC):
        compound = ole.Compound(io.BytesIO(data))
        if _has_password(compound.read("Workbook") or compound.read("Book") or b""):
            raise Refused("encrypted", "a password is needed")
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for part in archive.infolist():
                context.budget.expand(part.file_size, part.compress_size, part.file_size)
                if part.filename.startswith("xl/worksheets/") and part.filename.endswith(".xml"):
                    with archive.open(part) as file:
                        _span(file, part.filename, context.limits.memory_mb << 20)
    except _ZIP_ERRORS as error:
        raise Refused("corrupt", f"not a zip that can be opened: {error}"[:200]) from None


def _span(file: Any, name: str, memory: int) -> None:
    """Refuse a sheet that says it spans more than fits into the memory, if its filled cells do."""
    head = file.read(4096)
    claimed = _DIMENSION.search(head)
    if claimed is not None and _area(claimed[1], int(claimed[2])) * CELL_BYTES <= memory:
        return
    lowest, columns, tail = 0, 0, head
    while True:
        for column, row in _FILLED.findall(tail):
            lowest, columns = max(lowest, int(row)), max(columns, _column(column))
        block = file.read(BLOCK)
        if not block:
            break
        progress(len(block))
        tail = tail[tail.rfind(b"<") :][:1000] + block
    if lowest * columns * CELL_BYTES > memory:
        raise Refused("bomb", f"{name}: its cells span {lowest:,} rows by {columns:,} columns")


def _area(column: bytes, row: int) -> int:
    return _column(column) * row


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number


def _has_password(book: bytes) -> bool:
    """A FilePass record (MS-XLS 2.4.117) among those of the workbook's globals."""
    at = 0
    while at + 4 <= len(book):
        kind, size = struct.unpack_from("<HH", book, at)
        if kind in (_FILEPASS, _EOF):
            return kind == _FILEPASS
        at += 4 + size
    return False
