"""Arrow columns as JSON values, so that every cell can be read: text, numbers, true and false, null, lists and objects.

What JSON has no word for becomes, wherever it is nested:

- decimals and UUIDs: their digits as text, exactly; 32-bit floats: the shortest decimal that means them;
- dates and times: ISO 8601 as text, in UTC with a Z if they have a time zone; durations: seconds as a number;
- floats that are not finite: null, as JSON has neither NaN nor infinity;
- binary: text if it is UTF-8 without control characters (older writers mark no strings), else "<n bytes>";
- maps: an object if no key is there twice, else a list of [key, value] pairs; unions: the value.

Types are converted a column at a time by Arrow's own kernels, down through lists and structs. No kernel is used that
looks for a time zone database: the sandbox has none.
"""

from __future__ import annotations

import datetime
import itertools
import math
import uuid
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kind

from sheaf.formats.encoding import too_many_controls


def values(array: pa.Array) -> list[Any]:
    """The cells. Raises UnicodeDecodeError or pa.ArrowException if one of them is not what its type says."""
    for test, convert in _CONVERTERS:
        if test(array.type):
            return convert(array)
    return [readable(value) for value in array.to_pylist()]  # unions, views of lists, and what Arrow will add


def readable(value: Any) -> Any:
    """A Python value, as readers of Avro, YAML and sheets give it, as a JSON value by the same rules."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray)):
        return binary(bytes(value))
    if isinstance(value, dict):
        return {item if isinstance(item, str) else str(readable(item)): readable(v) for item, v in value.items()}
    if isinstance(value, pa.MonthDayNano):
        return {"months": value.months, "days": value.days, "nanoseconds": value.nanoseconds}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [readable(v) for v in value]
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(" ") + "Z"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def binary(value: bytes) -> str:
    if b"\0" not in value and not too_many_controls(value):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return f"<{len(value)} bytes>"


def _as_they_are(array: pa.Array) -> list[Any]:
    return array.to_pylist()


def _floats(array: pa.Array) -> list[Any]:
    if array.type != pa.float64():
        array = array.cast(pa.string() if array.type == pa.float32() else pa.float32()).cast(pa.float64())
    if pc.all(pc.is_finite(array)).as_py() is False:
        array = pc.if_else(pc.is_finite(array), array, None)
    return array.to_pylist()


def _in_words(array: pa.Array) -> list[Any]:
    return array.cast(pa.string()).to_pylist()


def _times(array: pa.Array) -> list[Any]:
    """Arrow writes all digits of the unit: those that are zero say nothing."""
    zone = ""
    if kind.is_timestamp(array.type) and array.type.tz is not None:
        zone = "Z"
        array = array.cast(pa.timestamp(array.type.unit))  # the same instant, told in UTC
    text = pc.replace_substring_regex(array.cast(pa.string()), r"(\.\d*?)0+$", r"\1")
    text = pc.replace_substring_regex(text, r"\.$", "")
    return (pc.binary_join_element_wise(text, zone, "") if zone else text).to_pylist()


def _durations(array: pa.Array) -> list[Any]:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[array.type.unit]
    return [None if n is None else n / per_second for n in array.cast(pa.int64()).to_pylist()]


def _binary(array: pa.Array) -> list[Any]:
    return [None if value is None else binary(value) for value in array.to_pylist()]


def _dictionary(array: pa.Array) -> list[Any]:
    return values(array.dictionary_decode())


def _run_ends(array: pa.Array) -> list[Any]:
    return values(pc.run_end_decode(array))


def _extension(array: pa.Array) -> list[Any]:
    if array.type.extension_name == "arrow.uuid":
        return [None if v is None else str(uuid.UUID(bytes=v)) for v in array.storage.to_pylist()]
    return values(array.storage)


def _lists(array: pa.Array) -> list[Any]:
    offsets = array.offsets.to_pylist()
    cells = values(array.values.slice(offsets[0], offsets[-1] - offsets[0]))
    return _cut(array, offsets, cells)


def _fixed_lists(array: pa.Array) -> list[Any]:
    width, first = array.type.list_size, array.offset
    cells = values(array.values.slice(first * width, len(array) * width))
    return _cut(array, [n * width for n in range(len(array) + 1)], cells)


def _maps(array: pa.Array) -> list[Any]:
    offsets = array.offsets.to_pylist()
    first, length = offsets[0], offsets[-1] - offsets[0]
    pairs = zip(values(array.keys.slice(first, length)), values(array.items.slice(first, length)), strict=True)
    return [None if row is None else _object(row) for row in _cut(array, offsets, list(pairs))]


def _object(pairs: list[tuple[Any, Any]]) -> Any:
    found = {key if isinstance(key, str) else str(key): value for key, value in pairs}
    return found if len(found) == len(pairs) else [list(pair) for pair in pairs]


def _structs(array: pa.Array) -> list[Any]:
    names = unique([array.type.field(n).name for n in range(array.type.num_fields)])
    rows: list[Any] = [{} for _ in range(len(array))]
    if names:
        columns = [values(column) for column in array.flatten()]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return [row if good else None for row, good in zip(rows, _valid(array), strict=True)] if array.null_count else rows


def unique(names: list[str]) -> list[str]:
    """The names, told apart: no two are equal, or one would hide the other's values."""
    taken: set[str] = set()
    for n, name in enumerate(names):
        name = name or f"column{n + 1}"
        while name in taken:
            name += "_"
        taken.add(name)
        names[n] = name
    return names


def _cut(array: pa.Array, offsets: list[int], cells: list[Any]) -> list[Any]:
    base = offsets[0]
    rows = [cells[start - base : end - base] for start, end in itertools.pairwise(offsets)]
    return [row if good else None for row, good in zip(rows, _valid(array), strict=True)] if array.null_count else rows


def _valid(array: pa.Array) -> list[bool]:
    return array.is_valid().to_pylist()


def _any_of(*tests: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda type: any(test(type) for test in tests)


_CONVERTERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]], ...] = (
    (lambda type: isinstance(type, pa.BaseExtensionType), _extension),
    (_any_of(kind.is_string, kind.is_large_string, kind.is_integer, kind.is_boolean, kind.is_null), _as_they_are),
    (kind.is_floating, _floats),
    (_any_of(kind.is_decimal, kind.is_date, kind.is_string_view), _in_words),
    (_any_of(kind.is_timestamp, kind.is_time), _times),
    (kind.is_duration, _durations),
    (_any_of(kind.is_binary, kind.is_large_binary, kind.is_fixed_size_binary, kind.is_binary_view), _binary),
    (kind.is_dictionary, _dictionary),
    (kind.is_run_end_encoded, _run_ends),
    (kind.is_map, _maps),
    (_any_of(kind.is_list, kind.is_large_list), _lists),
    (kind.is_fixed_size_list, _fixed_lists),
    (kind.is_struct, _structs),
)
