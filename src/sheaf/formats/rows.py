"""Rows and objects: which column is the text, what goes to meta, and how a value reads as text.

The recipe's `text` names a column or is a template such as '{title}\\n\\n{body}'. Without it the first present of
TEXT_COLUMNS that holds one is the text; else all scalar fields are, as "key: value" lines. If there are none, the
strings inside its objects and arrays are, as "key.inner: value" lines in their order; but a conversation is not: that
needs `map`. A row whose text column is blank or null has no text, unless another of its fields reads as prose.
Templates are filled by plain replacement: a name in braces is a column, and nothing of it is evaluated. With the
recipe's `map` a row becomes what `mapping` makes of it, or is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from sheaf.formats.columns import is_prose
from sheaf.formats.mapping import apply, columns_of, mapping_of
from sheaf.formats.messages import looks_like_messages
from sheaf.formats.piece import Batch, Columns, Context, ParseOptions, Piece, Pieces, Record, Refused, Region
from sheaf.formats.stream import BLOCK, Stream, from_file, lines_of

TEXT_COLUMNS = ("text", "content", "body", "markdown", "code", "article", "document", "abstract")
AT_ONCE = 2 << 20
_FIELD = re.compile(r"\{([^{}]+)\}")
_WORDS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "an array"}

Row = dict[str, Any]


def record(row: Row, start: int, end: int, encoding: str, options: ParseOptions, number: int) -> Record | Region:
    """The row as a record; a region if it has no text. number: its place among the lines or elements of the member,
    which tells rows apart whose keys are equal."""
    if options.map or options.raw_rows:
        return _otherwise(row, start, end, encoding, options, number)
    try:
        text, used = choose(row, options)
        locator = {"key": _key(row, options), "row": number} if options.key else None
    except Refused as refused:
        return Region(start, end, refused.reason, refused.detail)
    meta = {name: value for name, value in row.items() if name not in used} if len(used) < len(row) else None
    return Record(text, start, end, encoding, meta=meta, locator=locator)


def value(value: Any, start: int, end: int, encoding: str, options: ParseOptions) -> Record | Region:
    """A JSON value that is no object, as a record; a mapping has no use for it."""
    if options.map:
        return Region(start, end, "bad-row", f"not an object: {_WORDS.get(type(value), 'null')}")
    try:
        return Record(render(value), start, end, encoding)
    except Refused as refused:
        return Region(start, end, refused.reason, refused.detail)


def choose(row: Row, options: ParseOptions) -> tuple[str, tuple[str, ...]]:
    """(the text, the columns it is made of). Raises Refused("no-text" | "empty")."""
    template = options.text
    if template is None:
        for name in TEXT_COLUMNS:
            value = row.get(name)
            if isinstance(value, str) and value.strip():
                return value, (name,)
        used = tuple(name for name, value in row.items() if scalar(value))
        if not used:
            return _nested(row)
        blank = next((name for name in TEXT_COLUMNS if _is_blank(row.get(name, 0))), None)
        if blank and not any(isinstance(value, str) and is_prose(value) for value in row.values()):
            raise Refused("empty", f"no text in '{blank}'")
        return "\n".join(f"{name}: {render(row[name])}" for name in used), used
    used = columns(template)
    if "{" not in template:
        return render(_field(row, template)), used
    values = {name: render(_field(row, name)) for name in used}
    return _FIELD.sub(lambda found: values[found[1]], template), used


def _nested(row: Row) -> tuple[str, tuple[str, ...]]:
    """`choose` for a row without scalars."""
    talk = next((name for name, value in row.items() if isinstance(value, list) and looks_like_messages(value)), None)
    if talk is not None:
        raise Refused("no-text", f"a conversation in '{talk}', which only `map` in the recipe reads")
    lines: list[str] = []
    used: dict[str, None] = {}
    waiting: list[tuple[str, str, Any]] = [(name, name, value) for name, value in reversed(row.items())]
    while waiting:  # no recursion: what is nested deep must not take the parser with it
        column, path, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(column, f"{path}.{name}", inner) for name, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(column, path, inner) for inner in reversed(value)]
        elif isinstance(value, str) and value.strip():
            lines.append(f"{path}: {value}")
            used[column] = None
    if not lines:
        raise Refused("no-text", "no field holds text")
    return "\n".join(lines), tuple(used)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def wanted(options: ParseOptions) -> tuple[str, ...]:
    """The columns that the recipe names, in `text` or in `map`."""
    return mapping_of(options.map).columns if options.map else columns(options.text)


def columns(template: str | None) -> tuple[str, ...]:
    """The columns that the recipe's `text` names."""
    if template is None:
        return ()
    return tuple(dict.fromkeys(_FIELD.findall(template))) if "{" in template else (template,)


def scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, list))


def render(value: Any) -> str:
    """A JSON value as text: strings as they are, null as nothing, objects and arrays as indented JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except TypeError:  # the only one that a JSON value can cause
        raise Refused("bad-json", "nested too deep to write") from None


def transcoded(stream: Stream, context: Context, encoding: str, parse: Callable[[Stream, Context], Pieces]) -> Pieces:
    """Parse UTF-16 or UTF-32 through UTF-8, and give the pieces' places in the bytes as they lie."""
    raw = stream.read_all(context.limits.document_bytes)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise Refused("undecodable", f"not {encoding} at byte {error.start}: {error.reason}") from None
    mark = 0
    if text.startswith("\ufeff"):
        mark = len("\ufeff".encode(encoding))
        text = text[1:]
    data = text.encode()
    places = Places(data, encoding, mark)
    inner = from_file(io.BytesIO(data))
    for piece in parse(inner, context):
        for one in piece.records() if isinstance(piece, (Batch, Columns)) else (piece,):
            yield places.moved(one, encoding)
    stream.problem = stream.problem or inner.problem


class Places:
    """From byte offsets in UTF-8 to those in another Unicode encoding, in one pass: offsets must not go back."""

    def __init__(self, data: bytes, encoding: str, mark: int) -> None:
        self._data, self._encoding = data, encoding
        self._from, self._to = 0, mark

    def moved(self, piece: Piece, encoding: str) -> Piece:
        assert isinstance(piece, (Record, Region))
        piece.start, piece.end = self._at(piece.start), self._at(piece.end)
        if isinstance(piece, Record):
            piece.encoding = encoding
        return piece

    def _at(self, offset: int) -> int:
        self._to += len(self._data[self._from : offset].decode().encode(self._encoding))
        self._from = offset
        return self._to


def plain(options: ParseOptions) -> bool:
    """Whether a row's text can only be one of its values, and its meta the others."""
    return not (options.map or options.raw_rows or options.key or "{" in (options.text or ""))


def take_texts(values: list[Any], options: ParseOptions) -> list[str] | None:
    """The texts that `record` would give all these rows, taken out of them, if all have it in the same column; else
    None, and the rows are spoiled. Only for `plain` options."""
    if set(map(type, values)) != {dict}:
        return None
    name = options.text or next((name for name in TEXT_COLUMNS if name in values[0]), None)
    if name is None or not all(name in row for row in values):
        return None
    if options.text is None:
        earlier = TEXT_COLUMNS[: TEXT_COLUMNS.index(name)]
        if any(other in row for other in earlier for row in values):
            return None
    texts = [row.pop(name) for row in values]
    if set(map(type, texts)) != {str} or any(map(str.isspace, texts)) or not all(texts):
        return None
    return texts


def lines_or_refusals(stream: Stream, limit: int) -> Iterator[tuple[int, int, bytes] | Region]:
    """The lines, and a region for each that is longer than a record may be."""
    for start, end, block in stream.blocks(limit):
        yield from cut(start, end, block, limit)


def by_kernels(
    start: int,
    block: bytes,
    columns: Callable[[int, bytes], Columns | None],
    otherwise: Callable[[int, int, bytes], Pieces],
) -> Pieces:
    """The rows of a block of whole lines, by a kernel as far as they are usual. What an unusual one stands in front of
    is read otherwise for a stretch: unusual ones often come together."""
    while block:
        piece = columns(start, block)
        taken = 0 if piece is None else int(piece.ends[-1]) - start
        if piece is not None:
            yield piece
            start, block = start + taken, block[taken:]
        if block:
            end = block.rfind(b"\n", 0, BLOCK) + 1 or block.find(b"\n") + 1 or len(block)
            yield from otherwise(start, start + end, block[:end])
            start, block = start + end, block[end:]


def at_once(limit: int) -> int:
    """Bytes of lines that are gone through together: so few that only the first may be longer than the limit."""
    return max(1, min(AT_ONCE, limit // 2))


def cut(start: int, end: int, block: bytes | None, limit: int) -> Iterator[tuple[int, int, bytes] | Region]:
    """One of the stream's `blocks` likewise."""
    for at, until, line in ((start, end, None),) if block is None else lines_of(block, start, limit):
        if line is None:
            yield Region(at, until, "record-too-large", f"more than {limit >> 20} MB in one line")
        else:
            yield at, until, line


def _otherwise(row: Row, start: int, end: int, encoding: str, options: ParseOptions, number: int) -> Record | Region:
    """A row under a mapping, or as it is."""
    try:
        locator = {"key": _key(row, options), "row": number} if options.key else None
        if options.raw_rows:
            return Record(render(row), start, end, encoding, meta=row, locator=locator, kind="row")
        mapping = mapping_of(options.map)
        made = apply(row, mapping, options.mojibake)
    except Refused as refused:
        return Region(start, end, refused.reason, refused.detail)
    used = columns_of(options.map)
    meta = {name: value for name, value in row.items() if name not in used} or None
    record = Record(made.text, start, end, encoding, meta=meta, locator=locator)
    record.kind, record.messages = made.kind, made.messages
    return record


def _field(row: Row, name: str) -> Any:
    if name not in row:
        raise Refused("no-text", f"there is no field '{name}'")
    return row[name]


def _key(row: Row, options: ParseOptions) -> Row:
    names = [name or next(iter(row), "") for name in options.key]
    return {name: _field(row, name) for name in names}
