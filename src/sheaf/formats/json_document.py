"""A JSON document: an array of objects gives a record an element, with its exact bytes; so does an object which holds
one array of objects and no text of its own. Any other object is one record; scalars and arrays are rendered as text.

Strict as RFC 8259 (and lone surrogates in escapes are refused, as they are no text): one mistake anywhere refuses the
whole document, which is read up to an eighth of limits.memory_mb. json's C scanner gives the end of each value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson

from sheaf.formats import rows
from sheaf.formats.encoding import decode
from sheaf.formats.json_lines import unicode_encoding
from sheaf.formats.messages import looks_like_messages
from sheaf.formats.piece import Context, ParseOptions, Pieces, Record, Refused
from sheaf.formats.stream import Stream

_BLANK = re.compile(r"[ \t\n\r]*")


class _BadJson(ValueError):
    pass


def _no_constant(name: str) -> NoReturn:
    raise _BadJson(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    """What does not fit 64 bits becomes a float, as in JSON Lines."""
    value = int(digits)
    return value if -(1 << 63) <= value < 1 << 64 else float(digits)


_SCANNER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)
Span = tuple[Any, int, int]  # value, first character, character after it


def parse(stream: Stream, context: Context) -> Pieces:
    encoding = unicode_encoding(stream)
    raw = stream.read_all(context.limits.document_bytes)
    if encoding == "utf-8":
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise Refused("undecodable", f"JSON is UTF-8, but byte {error.start} is not: {error.reason}") from None
    decoded = decode(raw)
    if decoded.bad:
        raise Refused("undecodable", "it holds NUL bytes")
    text = decoded.text
    if not text.strip():
        raise Refused("empty", "no text")
    try:
        spans = _spans(text)
    except (ValueError, RecursionError) as error:
        raise Refused("bad-json", _why(text, error)) from None
    yield from _pieces(text, spans, decoded.encoding, decoded.mark, len(raw), context.options)


def _pieces(text: str, spans: list[Span], encoding: str, mark: int, size: int, options: ParseOptions) -> Pieces:
    start = _skip(text, 0)
    if text[start] == "[":
        if spans and (options.map or all(isinstance(value, dict) for value, _, _ in spans)):
            yield from _elements(text, spans, encoding, mark, options)
            return
        value: Any = [value for value, _, _ in spans]
        words = [rows.render(v) for v in value] if all(map(rows.scalar, value)) else [rows.render(value)]
        yield Record("\n".join(words), 0, size, encoding)
    elif text[start] == "{":
        table = _table(text, spans, options)
        if table is not None:
            yield from _elements(text, table, encoding, mark, options)
            return
        row = {name: value for (name, value), _, _ in spans}
        yield rows.record(row, 0, size, encoding, options, 0) if row else Record("", 0, size, encoding)
    else:
        yield rows.value(spans[0][0], 0, size, encoding, options)


def _elements(text: str, spans: list[Span], encoding: str, mark: int, options: ParseOptions) -> Pieces:
    """Each element at its bytes. Encoding the characters in between, once, gives the places."""
    at, place = 0, mark
    for number, (value, start, end) in enumerate(spans):
        first = place + len(text[at:start].encode(encoding))
        last = first + len(text[start:end].encode(encoding))
        at, place = end, last
        if isinstance(value, dict):
            yield rows.record(value, first, last, encoding, options, number)
        else:
            yield rows.value(value, first, last, encoding, options)


def _table(text: str, spans: list[Span], options: ParseOptions) -> list[Span] | None:
    """The elements of the one array of objects that an object holds, unless the object is itself a text."""
    tables = [(start, value) for (_, value), start, _ in spans if _is_table(value)]
    if len(tables) != 1 or options.key:
        return None
    names = {name for (name, _), _, _ in spans}
    if options.map:
        own = bool(names & {part for name in rows.wanted(options) for part in (name, name.partition(".")[0])})
    elif options.raw_rows and looks_like_messages(tables[0][1]):
        own = True  # a conversation, and not a table of unconnected messages
    elif options.text is None:
        own = any(isinstance(v, str) and v.strip() for (n, v), _, _ in spans if n in rows.TEXT_COLUMNS)
    else:
        own = options.text in names or set(re.findall(r"\{([^{}]+)\}", options.text)) & names
    return None if own else list(_array(text, tables[0][0]))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, dict) for v in value)


def _spans(text: str) -> list[Span]:
    """The document's elements: of an array its values, of an object its (name, value) pairs with the value's place,
    of anything else itself."""
    start = _skip(text, 0)
    if text[start] == "[":
        spans = list(_array(text, start))
        end = _after(text, spans[-1][2] if spans else start + 1, "]")
    elif text[start] == "{":
        spans = list(_object(text, start))
        end = _after(text, spans[-1][2] if spans else start + 1, "}")
    else:
        spans = [_value(text, start)]
        end = spans[0][2]
    if _skip(text, end) != len(text):
        raise json.JSONDecodeError("text after the end of the document", text, end)
    return spans


def _array(text: str, start: int) -> Iterator[Span]:
    at = _skip(text, start + 1)
    if text.startswith("]", at):
        return
    while True:
        span = _value(text, at)
        yield span
        at = _skip(text, span[2])
        if text.startswith("]", at):
            return
        at = _skip(text, _after(text, at, ","))


def _object(text: str, start: int) -> Iterator[Span]:
    at = _skip(text, start + 1)
    if text.startswith("}", at):
        return
    while True:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("expected a name in double quotes", text, at)
        name, _, end = _value(text, at)
        value, first, last = _value(text, _skip(text, _after(text, end, ":")))
        yield (name, value), first, last
        at = _skip(text, last)
        if text.startswith("}", at):
            return
        at = _skip(text, _after(text, at, ","))


def _value(text: str, at: int) -> Span:
    value, end = _SCANNER.raw_decode(text, at)
    if "\\u" in text[at:end]:
        orjson.loads(text[at:end])  # the standard library lets lone surrogates pass
    return value, at, end


def _after(text: str, at: int, mark: str) -> int:
    at = _skip(text, at)
    if not text.startswith(mark, at):
        raise json.JSONDecodeError(f"expected '{mark}'", text, at)
    return at + 1


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _why(text: str, error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, json.JSONDecodeError) and not isinstance(error, orjson.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return str(error)[:200]
