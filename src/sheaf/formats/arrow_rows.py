"""Record batches, from whatever file, as pieces: a record a row, {"row": n} counted from 0 over the whole member.

A row with pictures or sounds (`features`) is a record of each: {"row": n, "column": name} where there are several.

A batch's bytes are shared equally among its rows. Rows side by side that cannot be read or have no text are one region.
Where a batch has a broken cell it is halved until the row alone is left: the others are kept. What batches expand to is
counted against the item's budget. Memory: one batch and its rows as Python objects, so ask readers for small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sheaf.formats import features, rows
from sheaf.formats.arrow_values import unique, values
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import progress

BATCH_BYTES = 16 << 20  # what a reader should aim at
BATCH_ROWS = 10_000


class Rows:
    """Counts rows over the batches of one member. size: of the member. trusted: its reader checks what it builds;
    batches that lie in a file as they lie in memory must be checked, or a wrong offset reads elsewhere."""

    def __init__(self, context: Context, size: int, *, trusted: bool) -> None:
        self._context, self._size, self._trusted = context, size, trusted
        self._expanded = 0
        self.number = 0  # of the next row

    def pieces(self, batch: pa.RecordBatch, start: int, end: int) -> Pieces:
        """The rows of the next batch, whose bytes are about [start, end) of the member."""
        self._count(batch)
        yield from merged(self._rows(batch, start, end))

    def portions(self, batch: pa.RecordBatch, start: int, end: int) -> Pieces:
        """The same for a batch of any size, by slices whose rows fit in memory as objects."""
        count = len(batch)
        portion = max(1, min(BATCH_ROWS, BATCH_BYTES * count // max(_size(batch), 1)))
        at = start
        for first in range(0, count, portion):
            part = batch.slice(first, portion)
            to = start + (end - start) * (first + len(part)) // count
            yield from self.pieces(part, at, to)
            at = to

    def lost(self, count: int, start: int, end: int, error: Exception, what: str) -> Region:
        """The region for what a reader could not read: so many rows (0: nobody knows) of [start, end). The rows behind
        it are then numbered as if there were none in it, and the detail says so."""
        first = self.number
        self.number += count
        refused = refusal(error)
        place = {"row": [first, first + count - 1]} if count else None
        unknown = "" if count or end >= self._size else "; rows are counted on without it"
        return Region(start, end, refused.reason, f"{what}: {refused.detail}"[:250] + unknown, locator=place)

    def _count(self, batch: pa.RecordBatch) -> None:
        if self.number + len(batch) > self._context.limits.records:
            raise Refused("bomb", f"more than {self._context.limits.records:,} rows")
        size = _size(batch)
        self._expanded += size
        self._context.budget.expand(size, self._size, self._expanded)
        progress(size)

    def _rows(self, batch: pa.RecordBatch, start: int, end: int) -> Iterator[Record | Region]:
        count = max(len(batch), 1)
        options, limit = self._context.options, self._context.limits.record_bytes
        at = start
        for n, row in enumerate(self._readable(batch), 1):
            to = start + (end - start) * n // count
            if isinstance(row, dict) and (files := features.files_in(row)):
                yield from self._files(row, files, at, to)
                self.number += 1
                at = to
                continue
            if isinstance(row, Refused):
                piece: Record | Region = Region(at, to, row.reason, row.detail)
            else:
                piece = rows.record(row, at, to, "utf-8", options, self.number)
            if isinstance(piece, Record) and len(piece.text) > limit:
                piece = Region(at, to, "record-too-large", f"more than {limit >> 20} MB in one row")
            if isinstance(piece, Record) and (not piece.text or piece.text.isspace()):
                piece = Region(at, to, "empty", "no text")
            if isinstance(piece, Region):
                piece.locator = {"row": [self.number, self.number]}
            elif piece.locator is None:
                piece.locator = {"row": self.number}
            yield piece
            self.number += 1
            at = to

    def _files(self, row: rows.Row, files: dict[str, features.File], start: int, end: int) -> Iterator[Record | Region]:
        """A record for each picture or sound of the row, whose meta are the other columns."""
        at = start
        for n, (column, file) in enumerate(files.items(), 1):
            to = start + (end - start) * n // len(files)
            where = {} if len(files) == 1 else {"column": column}
            try:
                kind, known = features.look(file, self._context.limits)
            except Refused as refused:
                place = {"row": [self.number, self.number], **where}
                yield Region(at, to, refused.reason, refused.detail, locator=place)
            else:
                place = {"row": self.number, **where}
                yield Record("", at, to, "", {**known, **row}, locator=place, kind=kind, payload=file.raw or b"")
            at = to

    def _columns(self, batch: pa.RecordBatch, said: features.Features) -> Iterator[list[Any]]:
        """Each column's values; pictures and sounds as files, unless rows are wanted as text or as they are."""
        options = self._context.options
        as_text = options.text is not None or bool(options.map) or options.raw_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            files = None if as_text else features.files_of(column, name in said.media)
            plain = values(column)
            yield plain if files is None else [file or value for file, value in zip(files, plain, strict=True)]

    def _readable(self, batch: pa.RecordBatch) -> Iterator[rows.Row | Refused]:
        said = features.features_of(batch.schema)
        try:
            if not self._trusted:
                _check(batch)
            columns = list(self._columns(batch, said))
        except MemoryError:
            raise
        except (pa.ArrowException, ValueError, OverflowError) as error:
            if len(batch) <= 1:
                yield refusal(error)
                return
            half = len(batch) // 2
            yield from self._readable(batch.slice(0, half))
            yield from self._readable(batch.slice(half))
            return
        if not columns:
            yield from ({} for _ in range(len(batch)))
            return
        names = unique([str(name) for name in batch.schema.names])
        for row in zip(*columns, strict=True):
            yield features.with_names(dict(zip(names, row, strict=True)), said)


def merged(pieces: Iterator[Record | Region]) -> Pieces:
    """Refused rows side by side become one region if their reason is the same. Each piece says its row or rows."""
    held: Region | None = None
    for piece in pieces:
        if isinstance(piece, Region):
            if held is not None and _alike(held, piece):
                held = _joined(held, piece)
                continue
            held, piece = piece, held
        elif held is not None:
            yield held
            held = None
        if piece is not None:
            yield piece
    if held is not None:
        yield held


def refusal(error: Exception) -> Refused:
    """Why a reader of Arrow's stopped, in our codes."""
    text = " ".join(str(error).split())[:240]
    if isinstance(error, Refused):
        return error
    if isinstance(error, UnicodeDecodeError):
        return Refused("undecodable", "a value that should be text is not UTF-8")
    if "encrypt" in text or "decrypt" in text or "Decrypt" in text:
        return Refused("encrypted", "a key is needed")
    if isinstance(error, (pa.ArrowNotImplementedError, NotImplementedError)):
        return Refused("unsupported", text)
    if "UTF8" in text:
        return Refused("undecodable", "a value that should be text is not UTF-8")
    return Refused("corrupt", text)


def _size(batch: pa.RecordBatch) -> int:
    """Bytes in memory. Arrow's own sum walks out of a union's buffers (pyarrow 26): those count 16 bytes a row."""
    return sum(16 * len(batch) if _holds_union(column.type) else column.nbytes for column in batch.columns)


def _holds_union(type: pa.DataType) -> bool:
    return pa.types.is_union(type) or any(_holds_union(type.field(n).type) for n in range(type.num_fields))


def _check(batch: pa.RecordBatch) -> None:
    """Offsets and UTF-8, so that no cell leads outside the batch. Raises pa.ArrowInvalid. Dates and times of day that
    are no whole days, or too late, are odd and harmless: as plain numbers they pass."""
    for column in batch.columns:
        if pa.types.is_date64(column.type) or pa.types.is_time(column.type):
            column = column.view(pa.int64() if column.type.bit_width == 64 else pa.int32())
        column.validate(full=True)


def _alike(first: Region, second: Region) -> bool:
    columns = [(piece.locator or {}).get("column") for piece in (first, second)]
    return first.reason == second.reason and columns[0] == columns[1]


def _joined(first: Region, second: Region) -> Region:
    assert first.locator is not None and second.locator is not None
    place: dict[str, Any] = {**first.locator, "row": [first.locator["row"][0], second.locator["row"][1]]}
    return Region(first.start, second.end, first.reason, first.detail, locator=place)
