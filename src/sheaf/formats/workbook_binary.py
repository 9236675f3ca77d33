"""XLS (BIFF 2 to 8) and XLSB: sheets through calamine (MIT).

It holds a sheet as a full grid of cells at 32 bytes, twice, and of XLS all sheets at once: a cell at the far corner of
an otherwise small sheet would take a gigabyte. What the cells with a value span is therefore counted before, by a walk
over the file's records, 1 µs each: a sheet of XLSB, or a workbook of XLS, that spans more than an eighth of the memory
allows is refused. A sheet's share of the bytes is equal.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from typing import TypeVar

import python_calamine as calamine

from sheaf.formats import ole
from sheaf.formats.office_xml import Relations
from sheaf.formats.package import Package, Reader
from sheaf.formats.piece import Context, Refused
from sheaf.formats.seekable import seekable
from sheaf.formats.sheets import Cells, Row
from sheaf.formats.stream import Stream, progress

CELL_BYTES = 64
BLOCK = 1 << 16
_SHEETS = (calamine.SheetTypeEnum.WorkSheet, calamine.SheetTypeEnum.MacroSheet, calamine.SheetTypeEnum.DialogSheet)
_BOF, _EOF, _FILEPASS = 0x0809, 0x0A, 0x2F
# Records of BIFF 8 (MS-XLS 2.3) that hold a value, and begin with its row and column.
_XLS_CELLS = frozenset((0x06, 0xBD, 0xD6, 0xFD, 0x0203, 0x0204, 0x0205, 0x027E))
_XLSB_ROW, _XLSB_CELLS, _XLSB_SHEET = 0, range(2, 12), 156  # MS-XLSB 2.3; 1 is a cell without a value
T = TypeVar("T")


def open_sheets(stream: Stream, context: Context) -> Iterator[BinarySheet]:
    file, size = seekable(stream, context)
    if size > context.limits.document_bytes:
        raise Refused("record-too-large", f"a workbook of more than {context.limits.document_bytes >> 20} MB")
    data: bytes = file.read()
    most = (context.limits.memory_mb << 17) // CELL_BYTES
    spans = _check_xls(data, most) if data.startswith(ole.MAGIC) else _xlsb_spans(io.BytesIO(data), context)
    book = _calamine(lambda: calamine.CalamineWorkbook.from_filelike(io.BytesIO(data)))
    names = [sheet.name for sheet in book.sheets_metadata if sheet.typ in _SHEETS]
    for n, name in enumerate(names):
        share = size * (n + 1) // len(names) - size * n // len(names)
        too_large = too_wide(spans[name], name) if spans.get(name, 0) > most else None
        yield BinarySheet(book, name, share, too_large)


class BinarySheet:
    def __init__(self, book: calamine.CalamineWorkbook, name: str, share: int, problem: Refused | None) -> None:
        self.name, self.packed, self.problem = name, share, problem
        self._book = book
        self._part = (0, 1)  # of the rows that are read

    @property
    def taken(self) -> int:
        return self.packed * self._part[0] // self._part[1]

    def rows(self) -> Iterator[Row]:
        if self.problem:
            return
        try:
            sheet = _calamine(lambda: self._book.get_sheet_by_name(self.name))
        except Refused as refused:
            self.problem = refused
            return
        left = (sheet.start or (0, 0))[1]
        last = (sheet.end or (0, 0))[0] + 1
        for number, row in enumerate(sheet.iter_rows(), 1):
            self._part = number, max(last, number)
            cells: Cells = {column: cell for column, cell in enumerate(row, left) if cell != ""}
            if number % 1000 == 0:
                progress(0)
            if cells:
                yield number, cells


def too_wide(cells: int, name: str = "") -> Refused:
    return Refused("bomb", f"{name}: its cells span {cells:,}"[:200])


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


def _check_xls(data: bytes, most: int) -> dict[str, int]:
    """Raises Refused("encrypted" | "bomb"). Sheets are not told apart: they are all held together."""
    compound = ole.Compound(io.BytesIO(data))
    book = compound.read("Workbook") or compound.read("Book") or b""
    total = rows = columns = at = count = 0
    while at + 4 <= len(book):
        kind, size = struct.unpack_from("<HH", book, at)
        if kind == _FILEPASS:
            raise Refused("encrypted", "a password is needed")
        if kind in _XLS_CELLS and size >= 6:
            row, column = struct.unpack_from("<HH", book, at + 4)
            if kind == 0xBD:  # several cells: it ends with the last one's column
                column = max(column, struct.unpack_from("<H", book, at + 2 + size)[0])
            rows, columns = max(rows, row + 1), max(columns, column + 1)
        elif kind in (_BOF, _EOF):
            total, rows, columns = total + rows * columns, 0, 0
        at += 4 + size
        count += 1
        if count % 100_000 == 0:
            progress(0)
    if total + rows * columns > most:
        raise too_wide(total + rows * columns, "the workbook")
    return {}


def _xlsb_spans(file: io.BytesIO, context: Context) -> dict[str, int]:
    """The cells that each sheet's values span, by its name."""
    package = Package(file)
    for name in ("xl/sharedStrings.bin", "xl/styles.bin"):
        entry = package.find(name)
        if entry is not None:
            package.read(entry, context)
    relations = Relations(package, "xl/workbook.bin", context)
    spans: dict[str, int] = {}
    workbook = package.find("xl/workbook.bin")
    for kind, body in _records(package.open(workbook, context)) if workbook else ():
        if kind == _XLSB_SHEET:
            number, at = _word(body, 8)
            name, _ = _word(body, at)
            sheet = package.find(relations.target(number))
            if sheet is not None:
                spans[name] = _span(package.open(sheet, context))
    return spans


def _span(reader: Reader) -> int:
    row = rows = columns = 0
    for kind, body in _records(reader):
        if kind == _XLSB_ROW and len(body) >= 4:
            row = int.from_bytes(body[:4], "little") + 1
        elif kind in _XLSB_CELLS and len(body) >= 4:
            rows, columns = max(rows, row), max(columns, int.from_bytes(body[:4], "little") + 1)
    return rows * columns


def _records(reader: Reader) -> Iterator[tuple[int, bytes]]:
    """(type, content) of a part's records, as far as they can be read (MS-XLSB 2.1.4)."""
    held = b""
    at = 0
    try:
        while True:
            if len(held) - at < 8:
                held, at = held[at:] + _more(reader), 0
            if not held[at:]:
                return
            kind, at = _packed(held, at, 2)
            size, at = _packed(held, at, 4)
            while len(held) - at < size:
                block = _more(reader)
                if not block:
                    return
                held, at = held[at:] + block, 0
            yield kind, held[at : at + size]
            at += size
    except (Refused, IndexError) as error:
        if isinstance(error, Refused) and error.reason in ("bomb", "encrypted"):
            raise


def _more(reader: Reader) -> bytes:
    block = reader.read(BLOCK)
    progress(len(block))
    return block


def _packed(data: bytes, at: int, most: int) -> tuple[int, int]:
    """A number of up to so many bytes of seven bits, the lowest first."""
    value = 0
    for n in range(most):
        value |= (data[at + n] & 0x7F) << 7 * n
        if data[at + n] < 0x80:
            return value, at + n + 1
    return value, at + most


def _word(data: bytes, at: int) -> tuple[str, int]:
    """XLWideString: its length in characters, and they in UTF-16."""
    end = at + 4 + 2 * int.from_bytes(data[at : at + 4], "little")
    return data[at + 4 : end].decode("utf-16-le", "replace"), end
