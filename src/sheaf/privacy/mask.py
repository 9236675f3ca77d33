"""Marks in the place of what was found: "write to [email]", and the way from the masked text to the text and back.

`masked` does all texts of a column in one pass of a kernel, as fast as memory is copied. `masked_text` does one, and
keeps where each mark stands: a position in the masked text leads to one in the text, and so to source bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheaf.kernel import kernel
from sheaf.privacy.find import find, spans_of, values_of
from sheaf.privacy.rules import KINDS

LONGEST = 16_384  # characters that are looked at beyond an excerpt: no secret but the longest keys has more
_EVERY = frozenset(KINDS)
_MARKS = [f"[{kind}]".encode() for kind in KINDS]
_MARK_BYTES = np.frombuffer(b"".join(_MARKS), np.uint8)
_MARK_BOUNDS = np.cumsum([0, *map(len, _MARKS)]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked text, what was masked, and the marks by place: (start, end) in the text's UTF-8 bytes and in its
    own."""

    text: str
    kinds: frozenset[str]
    marks: tuple[tuple[int, int, int, int], ...]

    def to_source(self, start: int, end: int) -> tuple[int, int]:
        """The bytes of the text that the bytes [start, end) of the masked text stand for. A mark stands for all it
        hides, and so does a part of it."""
        return self._moved(start, end, 2, 0)

    def to_masked(self, start: int, end: int) -> tuple[int, int]:
        """The bytes of the masked text that stand for the bytes [start, end) of the text."""
        return self._moved(start, end, 0, 2)

    def _moved(self, start: int, end: int, here: int, there: int) -> tuple[int, int]:
        begins = [mark[here] for mark in self.marks]
        return self._at(start, begins, here, there, late=False), self._at(end, begins, here, there, late=True)

    def _at(self, place: int, begins: list[int], here: int, there: int, *, late: bool) -> int:
        # An end that is where a mark begins lies before the mark; a start lies in it.
        n = bisect_right(begins, place - late) - 1
        if n < 0:
            return place
        mark = self.marks[n]
        inside = place <= mark[here + 1] if late else place < mark[here + 1]
        if inside:
            return mark[there + 1] if late else mark[there]
        return place - mark[here + 1] + mark[there + 1]


def masked(texts: pa.LargeStringArray, findings: pa.Table, kinds: Collection[str]) -> pa.LargeStringArray:
    """The texts with the findings of these kinds replaced by marks. findings: FINDINGS, sorted by row and place."""
    findings = findings.filter(pc.is_in(findings["kind"], pa.array(sorted(kinds), pa.string())))
    if not len(findings):
        return texts
    data, bounds = values_of(texts)
    row, start, end = (findings[name].to_numpy() for name in ("row", "start", "end"))
    code = pc.index_in(findings["kind"], pa.array(KINDS)).to_numpy().astype(np.int32)
    change = np.zeros(len(texts), np.int64)
    np.add.at(change, row, np.diff(_MARK_BOUNDS)[code] - (end - start))
    offsets = np.append(0, np.cumsum(np.diff(bounds) + change))
    out = np.empty(int(offsets[-1]), np.uint8)
    _replace(data, bounds, row, start, end, code, _MARK_BYTES, _MARK_BOUNDS, out)
    return pa.Array.from_buffers(pa.large_string(), len(texts), [None, pa.py_buffer(offsets), pa.py_buffer(out)])


def masked_text(text: str, kinds: Collection[str]) -> Masked:
    """One text with its findings of these kinds replaced by marks, and where they are."""
    raw = text.encode("utf-8", "surrogatepass")
    parts: list[bytes] = []
    marks: list[tuple[int, int, int, int]] = []
    at = size = 0
    for start, end, kind in spans_of(raw):
        if kind in kinds:
            mark = f"[{kind}]".encode()
            size += start - at
            parts += [raw[at:start], mark]
            marks.append((start, end, size, size + len(mark)))
            at, size = end, size + len(mark)
    return Masked(b"".join([*parts, raw[at:]]).decode("utf-8", "surrogatepass"), frozenset(kinds), tuple(marks))


def hidden(text: str) -> str:
    """The text as it may be shown where nobody asked for it: with everything that is found masked."""
    return masked_text(text, _EVERY).text


def excerpt(text: str, characters: int) -> str:
    """The beginning of `hidden(text)`, without going through all of it: what is cut off was masked before."""
    return hidden(text[: characters + LONGEST])[:characters]


def hidden_column(texts: pa.ChunkedArray | pa.StringArray) -> pa.StringArray:
    """`hidden` of each."""
    large = texts.cast(pa.large_string())
    one = large.combine_chunks() if isinstance(large, pa.ChunkedArray) else large
    return masked(one, find(one), _EVERY).cast(pa.string())


def counts(text: str) -> dict[str, int]:
    """How many of each kind are in the text; kinds that are not are left out."""
    result: dict[str, int] = {}
    for _, _, kind in spans_of(text.encode("utf-8", "surrogatepass")):
        result[kind] = result.get(kind, 0) + 1
    return result


def counts_by_row(findings: pa.Table, rows: int) -> pa.Table:
    """int32, a column a kind, a row a text."""
    code = pc.index_in(findings["kind"], pa.array(KINDS)).to_numpy()
    table = np.zeros((len(KINDS), rows), np.int32)
    np.add.at(table, (code, findings["row"].to_numpy()), 1)
    return pa.table(dict(zip(KINDS, table, strict=True)))


@kernel
def _replace(
    data: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    row: NDArray[np.int32],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
    code: NDArray[np.int32],
    marks: NDArray[np.uint8],
    mark_bounds: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    n, written = 0, 0
    for r in range(len(bounds) - 1):
        i = bounds[r]
        while i < bounds[r + 1]:
            if n < len(row) and row[n] == r and i == bounds[r] + start[n]:
                for k in range(mark_bounds[code[n]], mark_bounds[code[n] + 1]):
                    out[written] = marks[k]
                    written += 1
                i = bounds[r] + end[n]
                n += 1
            else:
                out[written] = data[i]
                written += 1
                i += 1
