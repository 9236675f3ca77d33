"""What a parser gets and gives: a stream and a context in, pieces out.

A parser is a generator over one member's expanded bytes. It yields `Record`s (many at once as a `Batch`), `Region`s
(bytes that are refused, with the reason) and, if it is a container, `Member`s, whose stream is read before the
generator is resumed. Every piece has a weight in bytes of the parser's stream; bytes in no piece are structure. Raising
`Refused` refuses the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sheaf.formats.charge import Int64
from sheaf.formats.stream import Budget, Refused, Stream

__all__ = [
    "Batch",
    "Columns",
    "Context",
    "Member",
    "ParseOptions",
    "ParserLimits",
    "Piece",
    "Pieces",
    "Record",
    "Refused",
    "Region",
]


@dataclass(frozen=True, slots=True)
class ParseOptions:
    """text: a column name, or a template '{title} {body}', of rows and objects. key: columns that identify a row (SQL),
    whose locator is then {"key": {…}, "row": its number in the member} instead
    of bytes. mojibake: repair text that was decoded wrongly before. map: "" or the recipe's `map` as JSON, how rows and
    objects become records (`mapping`). raw_rows: for surveys: rows and objects come back as they are, as records of the
    kind "row" whose text and meta are the whole row. sample_bytes: not 0 for surveys: an item ends after so much text,
    what was not read of it is one region, "sampled", and it has no digest."""

    text: str | None = None
    key: tuple[str, ...] = ()
    mojibake: bool = True
    map: str = ""
    raw_rows: bool = False
    sample_bytes: int = 0
    excerpt: tuple[str, int, int] | None = None  # member, start, length: give only these bytes, as a payload
    encoding: str = ""  # "", or the codec that the item's texts are in, whatever detection says
    format: str = ""  # "", or the media type of table.py that the item is read as


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """The recipe's limits as the child knows them, without pydantic: its import would double the child's start."""

    seconds: float
    memory_mb: int
    expanded_mb: int
    ratio: float
    depth: int
    members: int
    record_mb: int
    records: int
    pages: int

    @property
    def record_bytes(self) -> int:
        return self.record_mb << 20

    @property
    def document_bytes(self) -> int:
        """The largest document or inner container that may be held whole: an eighth of the memory, for its objects."""
        return max(self.record_bytes, self.memory_mb << 17)


@dataclass(slots=True)
class Record:
    """One training unit. start, end: where it lies in the stream; weight: its bytes there, default end - start.
    gaps: some lines in it were refused, so its text is not the text of [start, end).
    locator: what its format calls the place, instead of bytes: {"page": 3}, {"sheet": "Q1", "row": 7}, {"row": 0};
    pages, slides, sheets' rows, cells and chapters count from 1 as readers see them, rows of tables from 0.
    kind: of schema.KINDS. messages: for chat and preference, JSON-able (text is then their plain rendering).
    payload: for image and audio, the bytes of the file (text is then "").
    normal: the text as UTF-8, if it is known to be normal (`normalise`); text is then ""."""

    text: str
    start: int
    end: int
    encoding: str
    meta: dict[str, Any] | None = None
    weight: int = -1
    gaps: bool = False
    locator: dict[str, Any] | None = None
    kind: str = "text"
    messages: Any = None
    payload: bytes = b""
    normal: bytes | memoryview = b""


@dataclass(slots=True)
class Batch:
    """Many records of the kind "text", exactly as if they were yielded one by one, for rows that lie close together:
    without an object each they cost a third. metas: {} for none."""

    texts: list[str]
    starts: Int64
    ends: Int64
    encoding: str
    metas: list[dict[str, Any]]

    def records(self) -> Iterator[Record]:
        places = zip(self.texts, self.starts.tolist(), self.ends.tolist(), self.metas, strict=True)
        return (Record(text, start, end, self.encoding, meta or None) for text, start, end, meta in places)


@dataclass(slots=True)
class Columns:
    """Many records likewise, as `fast` finds them: texts and metas in UTF-8, one after another, each ending where its
    ends say, and their places as locators. odd: where a text is not known to be normal."""

    text: NDArray[np.uint8]
    text_ends: Int64
    meta: NDArray[np.uint8]
    meta_ends: Int64
    odd: NDArray[np.bool_]
    starts: Int64
    ends: Int64
    places: NDArray[np.uint8]
    place_ends: Int64
    encoding: str

    def texts(self) -> list[bytes]:
        return _cut(self.text, self.text_ends)

    def metas(self) -> list[bytes]:
        return _cut(self.meta, self.meta_ends)

    def records(self) -> Iterator[Record]:
        places = zip(self.texts(), self.starts.tolist(), self.ends.tolist(), self.metas(), strict=True)
        for text, start, end, meta in places:
            yield Record(text.decode(), start, end, self.encoding, orjson.loads(meta) or None)


def _cut(data: NDArray[np.uint8], ends: Int64) -> list[bytes]:
    whole = data.tobytes()
    last: list[int] = ends.tolist()
    return [whole[start:end] for start, end in zip([0, *last], last, strict=False)]


@dataclass(slots=True)
class Region:
    """Bytes [start, end) of the stream which were refused. weight, locator: as for records; a stretch of rows, pages or
    the like is {"row": [first, last]}."""

    start: int
    end: int
    reason: str
    detail: str = ""
    weight: int = -1
    locator: dict[str, Any] | None = None


@dataclass(slots=True)
class Member:
    """One thing inside a container. The container sets weight, rest (bytes of it that gave nothing: nobody read them,
    or it breaks off there) and end (where it ends in the container's stream) at the latest when it is resumed.
    within: the part of the container that it belongs to, a step of the path of its own. expected: bytes that it says it
    expands to; a claim, for estimates only. about: what the container says of it (a URL, a date); merged into the meta
    of its records."""

    name: str
    stream: Stream
    weight: int = 0
    rest: int = 0
    media: str = ""
    end: int = 0
    within: str = ""
    expected: int = 0
    about: dict[str, Any] = field(default_factory=dict)


Piece = Record | Batch | Columns | Region | Member
Pieces = Iterator[Piece]


@dataclass(slots=True)
class Context:
    """about: what the place says of the item (a label, a commit); merged into the meta of its records.
    name: the innermost file name, for suffixes. media: the claimed content type, may hold a charset.
    kind: the detected media type. depth: containers around this stream."""

    name: str
    media: str
    kind: str
    options: ParseOptions
    limits: ParserLimits
    budget: Budget
    depth: int = 0
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
