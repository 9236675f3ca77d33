"""Columns of pictures and sounds, and numbers that stand for names, in tables as Hugging Face's libraries write them.

A picture or a sound in a table is a struct of its `bytes` and the `path` it once had, or plain binary; a list of them
is several. The schema's metadata may say so, under the key "huggingface": which columns are Image, Audio or ClassLabel
(github.com/huggingface/datasets, features.py). What it does not speak of is told by the bytes themselves. All of it is
a claim of the file: what does not look as it should is passed over. Cost: one copy of a batch's binary cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.types as types

from sheaf.formats import audio, image, table
from sheaf.formats.detect import unread
from sheaf.formats.peek import Peek
from sheaf.formats.piece import ParserLimits, Refused

_HEAD = 4096
_FORMATS = [format for format in table.FORMATS if format.media.startswith(("image/", "audio/"))]


@dataclass(frozen=True, slots=True)
class Features:
    """What a table says of itself. media: columns of pictures and sounds; names: of each class by number."""

    media: frozenset[str] = frozenset()
    names: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True, slots=True)
class File:
    """A picture or a sound in a row. raw: None if only its path is there."""

    raw: bytes | None
    path: str


def features_of(schema: pa.Schema) -> Features:
    return _features((schema.metadata or {}).get(b"huggingface", b""))


def files_of(column: pa.Array, declared: bool) -> list[tuple[File, ...]] | None:
    """The pictures and sounds of a column, row by row, or None if it cannot hold any. Raises pa.ArrowException.

    declared: the table says that it holds them; in other columns of plain binary they are what is recognised as such.
    """
    if types.is_list(column.type) or types.is_large_list(column.type):
        inner = files_of(column.flatten(), declared)
        if inner is None:
            return None
        ends = list(accumulate((length or 0 for length in column.value_lengths().to_pylist()), initial=0))
        return [tuple(one for many in inner[a:b] for one in many) for a, b in pairwise(ends)]
    if _is_binary(column.type):
        values = column.to_pylist()
        return [(File(v, ""),) if v is not None and (declared or kind_of(v)) else () for v in values]
    if not _is_bytes_and_path(column.type):
        return None
    raw, path = (column.flatten()[column.type.get_field_index(name)].to_pylist() for name in ("bytes", "path"))
    return [() if v is None and not p else (File(v, p or ""),) for v, p in zip(raw, path, strict=True)]


def files_in(row: dict[str, Any]) -> dict[str, File]:
    """Take out of a row what `files_of` put there, tuples: each by its column, or its place in the column's list."""
    found: dict[str, File] = {}
    for column in [name for name, value in row.items() if type(value) is tuple]:
        files = row.pop(column)
        found |= {column if len(files) == 1 else f"{column}.{n}": file for n, file in enumerate(files)}
    return found


def with_names(row: dict[str, Any], features: Features) -> dict[str, Any]:
    """The row, and beside each column of class numbers one of their names: `label` 1, `label_name` "cat"."""
    for column, names in features.names.items():
        beside = f"{column}_name"
        if column in row and beside not in row:
            value = row[column]
            if isinstance(value, list):
                row[beside] = [_name(one, names) for one in value]
            else:
                row[beside] = _name(value, names)
    return row


def look(cell: File, limits: ParserLimits) -> tuple[str, dict[str, Any]]:
    """(kind of record, what is known of the picture or sound). Raises Refused, as its file would be."""
    if cell.raw is None:
        raise Refused("empty", f"the row names a file and does not hold its bytes: {cell.path}"[:300])
    if len(cell.raw) > limits.record_bytes:
        raise Refused("record-too-large", f"more than {limits.record_mb} MB in one cell")
    media = kind_of(cell.raw)
    if media is None:
        refused = unread(cell.raw[:_HEAD])
        raise Refused("unsupported", refused.detail if refused else "no picture or sound of a type that is read")
    known = (
        image.look(cell.raw, media, image.most_pixels(limits)) if media in image.NAMES else audio.look(cell.raw, media)
    )
    name = {"file_name": cell.path} if cell.path else {}
    return media.partition("/")[0], {"media": media, **name, **known}


def kind_of(raw: bytes) -> str | None:
    """The media type of a picture or a sound that is read, by its first bytes."""
    peek = Peek(raw[:_HEAD], len(raw) <= _HEAD, "", "")
    for format in _FORMATS:
        if (format.magic and raw.startswith(format.magic)) or (format.looks is not None and format.looks(peek)):
            return format.media
    return None


@lru_cache(maxsize=8)
def _features(metadata: bytes) -> Features:
    try:
        said = orjson.loads(metadata) if metadata else {}
    except orjson.JSONDecodeError:
        return Features()
    columns = _object(_object(_object(said).get("info")).get("features"))
    media: set[str] = set()
    names: dict[str, tuple[str, ...]] = {}
    for column, feature in columns.items():
        feature = _of_one(feature)
        kind, listed = _object(feature).get("_type"), _object(feature).get("names")
        if kind in ("Image", "Audio"):
            media.add(column)
        elif kind == "ClassLabel" and isinstance(listed, list) and all(isinstance(n, str) for n in listed):
            names[column] = tuple(listed)
    return Features(frozenset(media), names)


def _of_one(feature: Any) -> Any:
    """The feature of a list's elements; of anything else its own."""
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else None
    return _object(feature).get("feature") if _object(feature).get("_type") in ("Sequence", "List") else feature


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _name(value: Any, names: Sequence[str]) -> str | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return names[value] if number and 0 <= value < len(names) else None  # -1 is "not labelled"


def _is_bytes_and_path(kind: pa.DataType) -> bool:
    if not types.is_struct(kind) or kind.num_fields != 2 or {kind.field(n).name for n in range(2)} != {"bytes", "path"}:
        return False
    raw, path = kind.field("bytes").type, kind.field("path").type
    return (_is_binary(raw) or types.is_null(raw)) and (types.is_string(path) or types.is_null(path))


def _is_binary(kind: pa.DataType) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)
