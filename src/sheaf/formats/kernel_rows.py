"""What the kernels of rows and texts give, as columns. Imported only where `fast` says so: it loads numba."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheaf.formats.charge import Int64
from sheaf.formats.csv_kernels import csv_rows
from sheaf.formats.ids import places
from sheaf.formats.json_kernels import json_lines, objects
from sheaf.formats.normalise import mojibake_tables
from sheaf.formats.piece import Columns
from sheaf.formats.rows import TEXT_COLUMNS
from sheaf.formats.stream import BLOCK
from sheaf.formats.text_kernels import (
    INVALID,
    NORMAL,
    REDO_META,
    REDO_TEXT,
    byte_places,
    count,
    has_controls,
    judge,
    trimmed,
    write_places,
)
from sheaf.kernel import read_only

ENTRIES = (  # as their machine code is named
    *("text_kernels.judge", "text_kernels.has_controls", "text_kernels.trimmed", "text_kernels.count"),
    *("text_kernels.write_places", "json_kernels.json_lines", "csv_kernels.csv_rows"),
)


def odd_values(column: pa.ChunkedArray, kind: str, usual: str) -> list[str]:
    """See `fast.odd_values`."""
    found: list[str] = []
    for chunk in column.chunks:
        starts, ends, data = places(chunk)
        known = np.zeros(len(chunk), np.bool_)
        if kind == "objects":
            scratch = np.empty(int((ends - starts).max(initial=0)) + 128, np.uint8)
            objects(*map(read_only, (data, starts, ends)), scratch, known)
        else:
            byte_places(*map(read_only, (data, starts, ends)), known)
        if not known.all():
            rest = chunk.filter(pa.array(~known))
            found += rest.filter(pc.not_equal(rest, usual)).to_pylist()
    return found


def json_columns(start: int, block: bytes, names: tuple[str, ...], limit: int) -> Columns | None:
    """The first lines of a block as records, up to an unusual one; None if that is the first. names: the columns that
    the text may be in."""
    if not _is_utf8(block):
        return None
    out = _Room(block, len(block))
    rows = json_lines(out.data, *_packed(names), *tables(), *out.filled)
    return out.columns(rows, start, limit)


def csv_columns(
    start: int, block: bytes, delimiter: str, names: list[str], text: str | None, limit: int
) -> Columns | None:
    """Likewise of a table with these columns; text: the one that the recipe names."""
    wanted = text or next((name for name in TEXT_COLUMNS if name in names), None)
    if wanted not in names or not _is_utf8(block):
        return None
    keys = tuple(orjson.dumps(name).decode() + ":" for name in names)
    out = _Room(block, 2 * len(block), sum(4 * len(key) + 4 for key in keys))
    rows = csv_rows(out.data, ord(delimiter), names.index(wanted), *_packed(keys), *tables(), *out.filled)
    return out.columns(rows, start, limit)


def normal_end(raw: bytes) -> int:
    """Where a text ends that is UTF-8 and its own normal form, but for blanks at its end; 0 if it may not be."""
    data = np.frombuffer(raw, np.uint8)
    if b"\x7f" in raw or has_controls(data, 0, len(raw)):
        return 0
    if judge(data, 0, len(raw), *tables()) != NORMAL:
        return 0
    return max(0, trimmed(data, 0, len(raw)))


class _Room:
    """Where a kernel puts the records of a block. meta_bytes, each: how long the metas may be, together and beside."""

    def __init__(self, block: bytes, meta_bytes: int, each: int = 0) -> None:
        self.data = np.frombuffer(block, np.uint8)
        rows = count(self.data, 0x0A) + 1
        room = meta_bytes + rows * (each + 3) + 128
        self.text, self.meta = (np.empty(size, np.uint8) for size in (len(block) + 128, room))
        self.text_ends, self.meta_ends, self.ends = (np.empty(rows, np.int64) for _ in range(3))
        self.redo = np.empty(rows, np.uint8)
        self.filled = (self.text, self.text_ends, self.meta, self.meta_ends, self.ends, self.redo)

    def columns(self, rows: int, start: int, limit: int) -> Columns | None:
        if rows <= 0:
            return None
        text_ends, meta_ends = self.text_ends[:rows], self.meta_ends[:rows]
        ends = self.ends[:rows] + start
        starts = np.append(np.int64(start), ends[:-1])
        if (ends - starts).max() >= limit:
            return None
        places = np.empty(51 * rows, np.uint8)
        place_ends = np.empty(rows, np.int64)
        places = places[: write_places(starts, ends, places, place_ends)]
        text, meta = self.text[: text_ends[-1]], self.meta[: meta_ends[-1]].copy()
        redo = self.redo[:rows]
        odd = (redo & REDO_TEXT) != 0
        made = Columns(text, text_ends, meta, meta_ends, odd, starts, ends, places, place_ends, "utf-8")
        again = np.flatnonzero(redo & REDO_META).tolist()
        if again and not _rewritten(made, again):
            return None
        if odd.any():
            texts = made.texts()
            if any(texts[row].isspace() or texts[row].decode().isspace() for row in np.flatnonzero(odd).tolist()):
                return None
        return made


def _rewritten(made: Columns, again: list[int]) -> bool:
    """Have orjson write the metas of these rows; False if it does not take one of them."""
    metas = made.metas()
    try:
        for row in again:
            metas[row] = orjson.dumps(orjson.loads(metas[row]))
    except (orjson.JSONDecodeError, TypeError):
        return False
    made.meta = np.frombuffer(b"".join(metas), np.uint8)
    made.meta_ends = np.cumsum(np.fromiter(map(len, metas), np.int64, len(metas)))
    return True


@functools.cache
def tables() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """The tables of `normalise.mojibake_tables`, and in the first of them a bit for each character that is not its own
    NFC, joins with the one before it, or has a place of its own in the order of marks (UAX 15, section 9)."""
    leads, follows = mojibake_tables()
    leads = leads.copy()
    flag = np.uint16(1 << 15)
    leads[0x1161:0x1176] |= flag
    leads[0x11A8:0x11C3] |= flag
    for point, letter in enumerate(map(chr, range(1 << 16))):
        if unicodedata.combining(letter) or unicodedata.normalize("NFC", letter) != letter:
            leads[point] |= flag
        parts = unicodedata.decomposition(letter).split()
        if len(parts) == 2 and not parts[0].startswith("<") and len(parts[1]) == 4:
            leads[int(parts[1], 16)] |= flag
    return read_only(leads), read_only(follows)


@functools.lru_cache(64)
def _packed(names: tuple[str, ...]) -> tuple[NDArray[np.uint8], Int64]:
    """Names in UTF-8, one after another, and where each ends."""
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    together = np.frombuffer(b"".join(encoded) + b"\0", np.uint8)
    return together, read_only(np.cumsum([len(name) for name in encoded]))


def _is_utf8(block: bytes) -> bool:
    data = np.frombuffer(block, np.uint8)
    return block.isascii() or judge(data, 0, len(block), *tables()) != INVALID


def warm() -> None:
    """Have every kernel compiled for the arrays that it is called with."""
    some = pa.chunked_array([["[]"]])
    for kind in ("objects", "byte_places"):
        odd_values(some, kind, "{}")
    json_columns(0, b'{"text": "a", "b": "\xc3\xa9", "c": 1}\n', TEXT_COLUMNS, BLOCK)
    csv_columns(0, b"1,a\n", ",", ["id", "text"], None, BLOCK)
    normal_end(b"a\xc3\xa9")
