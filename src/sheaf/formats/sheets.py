"""What the readers of workbooks have in common: a sheet gives its rows, front to back, as cells by column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Protocol

from sheaf.formats.piece import Refused

MOST_COLUMNS = 1 << 14  # a sheet has no more, in any of the programs
Cells = dict[int, Any]  # column, from 0 → value; only those that hold something
Row = tuple[int, Cells | Refused]  # number from 1, as the user sees it
_FIRST, _LETTER = ord("A") - 1, re.compile("[A-Z]+")
_columns: dict[str, int] = {}


class Sheet(Protocol):
    """packed: bytes that it takes in the file. taken: how many of them are read. problem: why it was not all."""

    name: str
    problem: Refused | None

    @property
    def packed(self) -> int: ...

    @property
    def taken(self) -> int: ...

    def rows(self) -> Iterator[Row]:
        """Those that hold something."""
        ...


def letters(column: int) -> str:
    """0 → A, 25 → Z, 26 → AA."""
    name = ""
    column += 1
    while column:
        column, letter = divmod(column - 1, 26)
        name = chr(65 + letter) + name
    return name


def column_of(place: str) -> int:
    """ "AB7" → 27; -1 if it names no column that a sheet has."""
    name = place.rstrip("0123456789")
    known = _columns.get(name)
    if known is None:
        known = 0
        for letter in name if _LETTER.fullmatch(name) and len(name) < 4 else "":
            known = known * 26 + ord(letter) - _FIRST
        known = known - 1 if known <= MOST_COLUMNS else -1
        if known >= 0:
            _columns[name] = known
    return known
