"""The text of an XML document from its events: which elements stand in a line, which on lines of their own, and which
are entries that make a record each. Holds what is open, and the text since the last entry."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby

from sheaf.formats.html import visible_text
from sheaf.formats.piece import Refused

DEPTH = 500  # elements inside each other
LONG = 100  # characters of a block above which it is a paragraph, with an empty line after it
_SKIPPED = frozenset({"script", "style", "stylesheet", "binary", "bindata"})
_PREFORMATTED = frozenset(
    ("pre", "programlisting", "screen", "literallayout", "synopsis", "verbatim", "codeblock", "listing", "sourcecode",
     "artwork")
)  # fmt: skip
_MARKUP = re.compile(r"<(?:p|br|div|a|b|i|em|strong|ul|ol|li|img|span|table|h[1-6]|blockquote|code|pre)\b[^<>]*>", re.I)
_BLANKS = re.compile(r"[ \t\r\f\v]*\n\s*\n[ \t]*|[ \t\r\f\v]*\n[ \t]*|[ \t\r\f\v]+")
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Dialect:
    """entry: elements that are a record each. skipped: elements that say nothing to a reader. markup: texts may be
    HTML, written as text."""

    entry: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()
    markup: bool = False


_FEED = frozenset(
    ("link", "guid", "id", "pubdate", "lastbuilddate", "published", "updated", "generator", "ttl", "docs", "language",
     "cloud", "image", "uri", "email", "icon", "logo", "date")
)  # fmt: skip
_WIKI = frozenset(
    ("siteinfo", "ns", "id", "parentid", "timestamp", "contributor", "comment", "model", "format", "sha1", "origin",
     "restrictions")
)  # fmt: skip
DIALECTS = {  # by the root's name without prefix, in lower case
    "rss": Dialect(frozenset({"item"}), _FEED, markup=True),
    "rdf": Dialect(frozenset({"item"}), _FEED, markup=True),  # RSS 1.0
    "feed": Dialect(frozenset({"entry"}), _FEED, markup=True),
    "mediawiki": Dialect(frozenset({"page"}), _WIKI),
    "pubmedarticleset": Dialect(frozenset({"pubmedarticle"})),
    "collection": Dialect(frozenset({"record"})),  # MARC
    "tmx": Dialect(frozenset({"tu"})),
}
_ANY = Dialect()
_TABLE = Dialect(frozenset({"row"}))  # of the root's children only: rows of a document's tables are no entries


@dataclass(slots=True)
class Entry:
    """Bytes [start, end). row: its attributes and its children's texts by name; None where only size made it an entry.
    large: it was given up."""

    start: int
    end: int
    text: str
    row: Row | None = None
    large: bool = False


@dataclass(slots=True)
class _Frame:
    """An open element. parts: (text, it is in its final form). starts: where each of the parts that is an element
    begins, and its place in parts. row: only of entries."""

    name: str
    start: int
    parts: list[tuple[str, bool]] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)
    mixed: bool = False
    preserve: bool = False
    skip: bool = False
    large: bool = False
    row: Row | None = None


class Tree:
    """Fed with an expat parser's events. entries: complete ones, for the caller to take away. everything: also the
    elements that say nothing to a reader, because the recipe may name them."""

    def __init__(self, *, everything: bool = False) -> None:
        self._everything = everything
        self.root = self.namespace = self.title = ""
        self.entries: list[Entry] = []
        self.found = 0  # entries so far
        self.stray = False  # text between entries was left out
        self._dialect = _ANY
        self._open: list[_Frame] = []
        self._entry = -1  # depth of the open entry
        self._entries_at = -1  # depth at which every element is an entry, after `split`
        self._last: Entry | None = None  # its end is where the next tag begins
        self._text: tuple[str, bool] = ("", True)

    def start(self, name: str, attributes: Row, at: int) -> None:
        """Raises Refused("bomb")."""
        self._settle(at)
        prefix, _, local = name.rpartition(":")
        lower = local.lower()
        depth = len(self._open)
        if depth == 0:
            self.root = local
            self.namespace = attributes.get(f"xmlns:{prefix}" if prefix else "xmlns", "")
            self._dialect = DIALECTS.get(lower, _ANY)
        elif depth >= DEPTH:
            raise Refused("bomb", f"more than {DEPTH} elements inside each other")
        outer = self._open[-1] if depth else None
        frame = _Frame(local, at)
        if outer is not None:
            frame.preserve = outer.preserve
            frame.skip = outer.skip or lower in _SKIPPED or (lower in self._dialect.skipped and not self._everything)
        space = attributes.get("xml:space")
        frame.preserve = space == "preserve" or ((frame.preserve or lower in _PREFORMATTED) and space != "default")
        dialect = _TABLE if depth == 1 and self._dialect is _ANY else self._dialect
        if self._entry < 0 and depth and (depth == self._entries_at or lower in dialect.entry):
            self._entry = depth
            frame.row = dict(attributes) if lower in dialect.entry else None
        self._open.append(frame)

    def end(self, at: int) -> None:
        self._settle(at)
        frame = self._open.pop()
        text, final = ("", True) if frame.skip else _rendered(frame)
        if self._dialect.markup and _MARKUP.search(text):
            text, final = visible_text(text), True
        if len(self._open) == self._entry:
            self._entry = -1
            self.found += 1
            self._last = Entry(frame.start, at, _final(text, final), frame.row, frame.large)
        elif not self._open:
            self._text = (text, final)
        elif text:
            self._keep(frame, text, final)

    def text(self, data: str) -> None:
        if self._open and not (frame := self._open[-1]).skip:
            frame.parts.append((data, False))
            if not frame.mixed and not data.isspace():
                frame.mixed = True
                self.stray = self.stray or (self._entry < 0 <= self._entries_at)

    def split(self) -> bool:
        """Make entries of the elements of the uppermost level that repeats, those before included. False: none does."""
        depth = next((n for n, frame in enumerate(self._open) if len(frame.starts) > 1), -1)
        if depth < 0:
            return False
        frame = self._open[depth]
        ends = [start for start, _ in frame.starts[1:]]
        inner = self._open[depth + 1] if len(self._open) > depth + 1 else None
        ends.append(inner.start if inner else frame.starts[-1][0])
        for (start, part), end in zip(frame.starts, ends, strict=True):
            self.entries.append(Entry(start, end, _final(*frame.parts[part])))
        self._entries_at = depth + 1
        self.stray = any(outer.parts for outer in self._open[:depth])
        for outer in self._open[: depth + 1]:
            outer.parts, outer.starts = [], []
        if inner is not None:
            self._entry = depth + 1
        else:
            self._last = self.entries.pop()
        self.found += len(self.entries)
        return True

    def splitting(self) -> bool:
        return self._entries_at >= 0

    def open_entry(self) -> int:
        """Where the open entry begins; -1 if none is open."""
        return self._open[self._entry].start if self._entry >= 0 else -1

    def give_up(self) -> None:
        """The open entry is too large: forget its text, and what comes of it."""
        for frame in self._open[self._entry :]:
            frame.parts, frame.starts, frame.skip = [], [], True
        self._open[self._entry].large = True

    def finish(self, at: int) -> str:
        """The document ends, or breaks off. Returns its text outside of entries."""
        while self._open:
            self.end(at)
        self._settle(at)
        return _final(*self._text)

    def _keep(self, frame: _Frame, text: str, final: bool) -> None:
        outer = self._open[-1]
        if frame.name.lower() == "title" and not self.title and not self.found and len(self._open) <= 3:
            self.title = " ".join(text.split())[:1000]
        if outer.row is not None:
            known = outer.row.get(frame.name)
            value = _final(text, final)
            outer.row[frame.name] = value if known is None else f"{known}\n{value}"
        outer.starts.append((frame.start, len(outer.parts)))
        outer.parts.append((text, final))

    def _settle(self, at: int) -> None:
        entry, self._last = self._last, None
        if entry is not None:
            entry.end = at
            self.entries.append(entry)


def _rendered(frame: _Frame) -> tuple[str, bool]:
    parts = frame.parts
    if len(parts) == 1 and not frame.preserve:
        return parts[0]
    if frame.preserve and (frame.mixed or not frame.starts):
        return "".join(text for text, _ in parts), True
    if not frame.mixed:
        blocks = [block for text, final in parts if (block := _final(text, final))]
        return ("\n\n" if any(len(block) > LONG for block in blocks) else "\n").join(blocks), True
    lists = [final and "\n" in text for text, final in parts]
    if not any(lists):
        return "".join(text for text, _ in parts), False
    runs = groupby(zip(lists, parts, strict=True), key=lambda pair: pair[0])
    blocks = [_final("".join(text for _, (text, _) in run), alone) for alone, run in runs]
    return "\n".join(block for block in blocks if block), True


def _final(text: str, final: bool) -> str:
    """Without the indentation of the markup; line ends and paragraphs stay."""
    if final:
        return text if text and not text.isspace() else ""
    return _BLANKS.sub(_blank, text.replace("\r\n", "\n")).strip()


def _blank(found: re.Match[str]) -> str:
    lines = found[0].count("\n")
    return " " if not lines else "\n" if lines == 1 else "\n\n"
