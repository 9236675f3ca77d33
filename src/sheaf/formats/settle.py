"""Many records at once, as columns: their texts in normal form, and their metas as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.formats.normalise import normalise, normalise_all
from sheaf.formats.piece import Batch, Columns

_LINE_END = orjson.Fragment(b"\n")


@dataclass(frozen=True, slots=True)
class Settled:
    """texts: large_string; metas, locators: string; repairs: None if there are none. text_bytes, meta_bytes: of all."""

    texts: pa.Array
    metas: pa.Array
    locators: pa.Array
    repairs: list[str] | None
    text_bytes: int
    meta_bytes: int


def settled(piece: Batch | Columns, about: dict[str, Any], mojibake: bool) -> Settled | None:
    """None if one of the records is no usual one. about: what joins every meta."""
    if isinstance(piece, Batch):
        texts, repairs = normalise_all(piece.texts, mojibake)
        try:
            metas = _metas([{**about, **meta} for meta in piece.metas] if about else piece.metas)
        except TypeError:
            return None
        return _settled(piece, [text.encode() for text in texts], metas, repairs) if all(texts) else None
    if piece.odd.any():
        return _redone(piece, mojibake)
    texts = column(piece.text, piece.text_ends, pa.large_string())
    metas = column(piece.meta, piece.meta_ends, pa.string())
    return Settled(texts, metas, _locators(piece), None, len(piece.text), len(piece.meta))


def joined(values: Sequence[bytes | memoryview], type: pa.DataType) -> pa.Array:
    """A column of strings; one by itself is not copied. Raises OverflowError where the offsets of its type do not
    reach."""
    ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
    return column(values[0] if len(values) == 1 else b"".join(values), ends, type)


def column(data: Any, ends: Any, type: pa.DataType) -> pa.Array:
    """Of strings that lie one after another."""
    offsets = np.append(np.int64(0), ends)
    if type == pa.string():
        if offsets[-1] >= 1 << 31:
            raise OverflowError("more than 2 GB in a column")
        offsets = offsets.astype(np.int32)
    return pa.Array.from_buffers(type, len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _redone(piece: Columns, mojibake: bool) -> Settled | None:
    texts, metas = piece.texts(), piece.metas()
    repairs = [""] * len(texts)
    for row in np.flatnonzero(piece.odd).tolist():
        text, repairs[row] = normalise(texts[row].decode(), mojibake)
        texts[row] = text.encode()
        if not text:
            return None
    return _settled(piece, texts, metas, repairs)


def _settled(piece: Batch | Columns, texts: list[bytes], metas: list[bytes], repairs: list[str]) -> Settled:
    sizes = (sum(map(len, values)) for values in (texts, metas))
    return Settled(joined(texts, pa.large_string()), joined(metas, pa.string()), _locators(piece), repairs, *sizes)


def _locators(piece: Batch | Columns) -> pa.Array:
    """{"bytes":[start,end]}, each."""
    if isinstance(piece, Columns):
        return column(piece.places, piece.place_ends, pa.string())
    first, last = (pc.cast(pa.array(values), pa.string()) for values in (piece.starts, piece.ends))
    return pc.binary_join_element_wise('{"bytes":[', first, ",", last, "]}", "")


def _metas(metas: list[dict[str, Any]]) -> list[bytes]:
    """Each one's JSON, from one call: JSON holds no line ends of its own. Raises TypeError."""
    if not any(metas):
        return [b"{}"] * len(metas)
    between: list[Any] = [_LINE_END] * (2 * len(metas) - 1)
    between[::2] = metas
    return orjson.dumps(between)[1:-1].split(b",\n,")
