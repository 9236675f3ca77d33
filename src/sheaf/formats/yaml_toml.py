"""YAML and TOML. What holds data becomes rows, what is a text of its own (a configuration, a workflow) stays that text.

A YAML document, or the whole of a TOML file, is data if it is an object with a column of text, or anything when the
recipe says which: then it goes through `rows`. A YAML list of such objects gives a record an element. All else is one
record a document, word for word; under a `map` it is refused. Places are byte ranges.

YAML is PyYAML's grammar (1.1, over libyaml) with the core schema of YAML 1.2, in which `no` is a word and 12:30 is no
number. Tags are ignored, so nothing is ever built but text, numbers, lists and objects. Aliases that expand to more
than a million values are a bomb; what contains itself is refused. A document that does not parse is a region, and the
next `---` goes on. Cost: libyaml reads some 2 MB/s; TOML is read by the standard library.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from sheaf.formats import rows, text
from sheaf.formats.arrow_values import readable
from sheaf.formats.encoding import decode
from sheaf.formats.piece import Context, ParseOptions, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream, progress

MOST_VALUES = 1_000_000
Span = tuple[int, int]  # characters
DEEPEST = 500  # libyaml takes time in the square of the depth, and ends the process at 100,000
# A document begins at its marker, or at the directives before that; the marker is one wherever it starts a line.
_START = re.compile(r"(?:^%[A-Z]+ [^\n]*\n(?:(?:#[^\n]*|[ \t]*)\n)*)*^---(?=[ \t\r\n]|\Z)", re.M)
_NOTHING = re.compile(r"(?:[ \t]*(?:---|\.\.\.|%[^\n]*)?[ \t\r]*(?:\n|\Z))*")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def parse_yaml(stream: Stream, context: Context) -> Pieces:
    raw, source, mark, encoding = _source(stream, context)
    place = _Places(source, encoding, mark)
    starts = [found.start() for found in _START.finditer(source)]
    cuts = [0, *(at for at in starts if at > 0), len(source)]
    for start, end in itertools.pairwise(cuts):
        yield from _documents(source[start:end], start, place, context)
        progress(0)
    if not raw.strip():
        raise Refused("empty", "no text")


def parse_toml(stream: Stream, context: Context) -> Pieces:
    raw, source, mark, encoding = _source(stream, context)
    try:
        value = readable(tomllib.loads(source))
    except tomllib.TOMLDecodeError as error:
        raise Refused("bad-toml", str(error)[:200]) from None
    except (RecursionError, ValueError) as error:  # a date that no calendar has, an integer of thousands of digits
        raise Refused("bad-toml", f"{error}"[:200]) from None
    if _is_data(value, context.options):
        yield rows.record(value, mark, len(raw), encoding, context.options, 0)
    else:
        yield Record(source, mark, len(raw), encoding)


def _source(stream: Stream, context: Context) -> tuple[bytes, str, int, str]:
    """(bytes, text, bytes of its mark, encoding)."""
    raw = stream.read_all(context.limits.record_bytes)
    decoded = decode(raw, text.charset_of(context.media))
    if decoded.bad:
        raise Refused("undecodable", f"bytes {decoded.bad[0][0]} to {decoded.bad[0][1]} are not UTF-8")
    return raw, decoded.text, decoded.mark, decoded.encoding


def _documents(source: str, at: int, place: _Places, context: Context) -> Pieces:
    """The documents of a stretch: one, or more if they end in `...`. at: where it starts in the whole."""
    held: _Document | None = None  # it reaches to where the next begins
    start = 0
    try:
        for document in _built(source):
            if held is not None:
                yield from _pieces(held, source[start : held.end], at + start, at, place, context.options)
                start = held.end
            held = document
        problem = None
    except (yaml.YAMLError, Refused) as error:
        problem = error
    if held is not None:
        end = held.end if problem else len(source)
        yield from _pieces(held, source[start:end], at + start, at, place, context.options)
        start = end
    if problem is not None:
        refused = problem if isinstance(problem, Refused) else Refused("bad-yaml", _why(problem, place.line(at)))
        yield Region(place.of(at + start), place.of(at + len(source)), refused.reason, refused.detail)


def _pieces(document: _Document, source: str, first: int, at: int, place: _Places, options: ParseOptions) -> Pieces:
    """One document: its text, which starts at character `first`, and its value. at: where its marks begin."""
    if _NOTHING.fullmatch(source):
        return
    value = document.value
    listed = isinstance(value, list) and value
    if not listed or not (options.map or all(_is_data(row, options) for row in value)):
        start, end = place.of(first), place.of(first + len(source))
        if isinstance(value, dict) and _is_data(value, options):
            yield rows.record(cast(rows.Row, value), start, end, place.encoding, options, 0)
        elif options.map:
            yield rows.value(value, start, end, place.encoding, options)
        else:
            yield Record(source, start, end, place.encoding)
        return
    for number, (start, end) in enumerate(document.elements):
        first, last, element = place.of(at + start), place.of(at + end), value[number]
        if isinstance(element, dict):
            yield rows.record(cast(rows.Row, element), first, last, place.encoding, options, number)
        else:
            yield rows.value(element, first, last, place.encoding, options)


def _is_data(value: Any, options: ParseOptions) -> bool:
    if not isinstance(value, dict):
        return False
    asked = bool(rows.wanted(options) or options.map or options.raw_rows or options.key)
    return asked or any(isinstance(value.get(name), str) and value[name].strip() for name in rows.TEXT_COLUMNS)


@dataclass(frozen=True, slots=True)
class _Document:
    """elements: where those of a list lie. end: the last character of the document, as far as its grammar knows."""

    value: Any
    elements: list[Span]
    end: int


@dataclass(slots=True)
class _Open:
    """A list or an object that is being filled. before: values counted when it began."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    start: int
    before: int
    key: str | None = None
    merged: dict[str, Any] = field(default_factory=dict[str, Any])


class _Builder:
    """Plain values from a document's events, without recursion. An alias is its anchor's value again: what it would
    expand to is counted, and built once."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}  # value and size; 0: it is still open
        self._size = 0
        self.elements: list[Span] = []
        self.root: Any = None

    def take(self, event: Any) -> None:
        start, end = event.start_mark.index, event.end_mark.index
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style not in ("'", '"', "|", ">")
            value = _plain(event.value) if plain else event.value
            if event.anchor:
                self._anchors[event.anchor] = value, 1
            self._put(value, 1, start, end)
        elif isinstance(event, yaml.AliasEvent):
            value, size = self._anchors.get(str(event.anchor), (None, -1))
            if size <= 0:
                why = "contains itself" if size == 0 else "names nothing"
                raise Refused("bad-yaml", f"the alias *{event.anchor} {why}"[:200])
            self._put(value, size, start, end)
        elif isinstance(event, yaml.CollectionStartEvent):
            container: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            self._open.append(_Open(container, event.anchor, start, self._size))
            if event.anchor:
                self._anchors[event.anchor] = container, 0
            if len(self._open) > DEEPEST:
                raise Refused("bad-yaml", f"nested more than {DEEPEST} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(end)

    def _close(self, end: int) -> None:
        done = self._open.pop()
        if isinstance(done.value, dict) and done.merged:
            own = dict(done.value)
            done.value.clear()
            done.value.update({**done.merged, **own})
        size = self._size - done.before + 1
        if done.anchor:
            self._anchors[done.anchor] = done.value, size
        self._size = done.before
        self._put(done.value, size, done.start, end)

    def _put(self, value: Any, size: int, start: int, end: int) -> None:
        self._size += size
        if self._size > MOST_VALUES:
            raise Refused("bomb", f"aliases expand to more than {MOST_VALUES:,} values")
        if not self._open:
            self.root = value
            return
        above = self._open[-1]
        if isinstance(above.value, list):
            above.value.append(value)
            if len(self._open) == 1:
                self.elements.append((start, end))
        elif above.key is None:
            above.key = value if isinstance(value, str) else rows.render(value) or "null"
        else:
            if above.key == "<<":
                for part in reversed(value if isinstance(value, list) else [value]):
                    above.merged.update(part if isinstance(part, dict) else {})
            else:
                above.value[above.key] = value
            above.key = None


def _built(source: str) -> Iterator[_Document]:
    builder = _Builder()
    for event in cast(Iterator[Any], yaml.parse(source, Loader=_LOADER)):
        end = event.end_mark.index
        if isinstance(event, yaml.DocumentStartEvent):
            builder = _Builder()
        elif isinstance(event, yaml.DocumentEndEvent):
            yield _Document(builder.root, builder.elements, end)
        else:
            builder.take(event)


def _plain(word: str) -> Any:
    """The core schema of YAML 1.2 (10.3.2), without octals, hexadecimals and what is not finite: they stay words."""
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) and math.isfinite(float(word)) else word


class _Places:
    """From characters to bytes as they lie, in one pass: offsets do not go back by more than a document."""

    def __init__(self, source: str, encoding: str, mark: int) -> None:
        self._source, self.encoding = source, encoding
        self._from, self._to = 0, mark

    def of(self, character: int) -> int:
        step = self._source[min(self._from, character) : max(self._from, character)]
        size = len(step.encode(self.encoding))
        self._to += size if character >= self._from else -size
        self._from = character
        return self._to

    def line(self, character: int) -> int:
        """Counted from 1."""
        return self._source.count("\n", 0, character) + 1


def _why(error: Exception, line: int) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    mark = getattr(error, "problem_mark", None)
    where = f"line {line + mark.line}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{getattr(error, 'problem', None) or getattr(error, 'reason', None) or error}"[:200]
