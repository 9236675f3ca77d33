"""YAML and TOML. What holds data becomes rows, what is a text of its own (a configuration, a workflow) stays that text.

A YAML document, or the whole of a TOML file, is data if it is an object with a column of text, or anything when the
recipe says which: then it goes through `rows`. A YAML list of such objects gives a record an element. All else is one
record a document, word for word. Places are byte ranges.

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
from typing import Any, cast

import yaml

from sheaf.formats import rows, text
from sheaf.formats.arrow_values import readable
from sheaf.formats.encoding import decode
from sheaf.formats.piece import Context, ParseOptions, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream, progress

MOST_VALUES = 1_000_000
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
    loader, done = None, 0
    try:
        loader = _LOADER(source)
        while loader.check_node():
            node = loader.get_node()
            end = node.end_mark.index if loader.check_node() else len(source)
            value = _Builder().value(node)
            yield from _pieces(node, value, source[done:end], at + done, at, place, context)
            done = end
    except (yaml.YAMLError, RecursionError, Refused) as error:
        start, end = place.of(at + done), place.of(at + len(source))
        refused = error if isinstance(error, Refused) else Refused("bad-yaml", _why(error, place.line(at)))
        yield Region(start, end, refused.reason, refused.detail)
    finally:
        if loader is not None:
            loader.dispose()


def _pieces(node: yaml.Node, value: Any, source: str, first: int, at: int, place: _Places, context: Context) -> Pieces:
    """One document: its text, which starts at character `first`, and its value. at: where the node's marks begin."""
    options = context.options
    if _NOTHING.fullmatch(source):
        return
    table = isinstance(value, list) and bool(value) and all(_is_data(row, options) for row in value)
    if not table:
        start, end = place.of(first), place.of(first + len(source))
        if isinstance(value, dict) and _is_data(value, options):
            yield rows.record(cast(rows.Row, value), start, end, place.encoding, options, 0)
        else:
            yield Record(source, start, end, place.encoding)
        return
    for number, element in enumerate(node.value):
        row = cast(rows.Row, value[number])
        start, end = place.of(at + element.start_mark.index), place.of(at + element.end_mark.index)
        yield rows.record(row, start, end, place.encoding, options, number)


def _is_data(value: Any, options: ParseOptions) -> bool:
    if not isinstance(value, dict):
        return False
    asked = bool(rows.wanted(options) or options.map or options.raw_rows or options.key)
    return asked or any(isinstance(value.get(name), str) and value[name].strip() for name in rows.TEXT_COLUMNS)


class _Builder:
    """Plain values from a document's nodes. An alias is its anchor's node again: what it would expand to is counted,
    and built once."""

    def __init__(self) -> None:
        self._built: dict[int, tuple[Any, int]] = {}
        self._open: set[int] = set()
        self._size = 0

    def value(self, node: yaml.Node) -> Any:
        self._size += 1
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style in ("'", '"', "|", ">") else _plain(node.value)
        key = id(node)
        if key in self._open:
            raise Refused("bad-yaml", "it contains itself")
        if key in self._built:
            value, size = self._built[key]
            self._size += size
        else:
            before = self._size
            self._open.add(key)
            value = self._list(node) if isinstance(node, yaml.SequenceNode) else self._object(node)
            self._open.discard(key)
            self._built[key] = (value, self._size - before)
        if self._size > MOST_VALUES:
            raise Refused("bomb", f"aliases expand to more than {MOST_VALUES:,} values")
        return value

    def _list(self, node: yaml.Node) -> list[Any]:
        return [self.value(item) for item in node.value]

    def _object(self, node: yaml.Node) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name, item in node.value:
            key, value = self.value(name), self.value(item)
            if key == "<<" and isinstance(name, yaml.ScalarNode):
                for part in reversed(value if isinstance(value, list) else [value]):
                    merged.update(part if isinstance(part, dict) else {})
            else:
                found[key if isinstance(key, str) else rows.render(key) or "null"] = value
        return {**merged, **found}


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
