"""Cells of every Arrow type become JSON values, nested or not, in slices as in whole columns."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.formats.arrow_values import binary, readable, unique, values

ID = UUID("755d3d27-6c13-4c46-aaae-4d52ea1904e6")
CASES: list[tuple[pa.Array, list[Any]]] = [
    (pa.array([1, None, 2**64 - 1], pa.uint64()), [1, None, 2**64 - 1]),
    (pa.array([True, None, False]), [True, None, False]),
    (pa.array([0.1, None, float("nan"), float("inf")], pa.float32()), [0.1, None, None, None]),
    (pa.array([0.1, None, float("-inf")]), [0.1, None, None]),
    (pa.array([0.5, None], pa.float16()), [0.5, None]),
    (pa.array([Decimal("1.50"), None]), ["1.50", None]),
    (pa.array([10**40, None], pa.decimal256(50, 0)), [str(10**40), None]),
    (pa.array([dt.date(2020, 1, 2), None]), ["2020-01-02", None]),
    (pa.array([dt.time(1, 2, 3), dt.time(1, 2, 3, 500)]), ["01:02:03", "01:02:03.0005"]),
    (pa.array([dt.datetime(2020, 1, 2, 3), None]), ["2020-01-02 03:00:00", None]),
    (pa.array([100, None], pa.timestamp("ms", "No/Where")), ["1970-01-01 00:00:00.1Z", None]),
    (pa.array([2**62], pa.timestamp("s")), [f"<value out of range: {2**62}>"]),
    (pa.array([1500, None], pa.duration("ms")), [1.5, None]),
    (pa.array([pa.MonthDayNano([1, 2, 3])]), [{"months": 1, "days": 2, "nanoseconds": 3}]),
    (pa.array([b"text", b"\xff\x00", None]), ["text", "<2 bytes>", None]),
    (pa.array([b"\0\0", b"ab"], pa.binary(2)), ["<2 bytes>", "ab"]),
    (pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"]),
    (pa.array([ID.bytes, None], pa.uuid()), [str(ID), None]),
    (pa.array(["a", None], pa.string_view()), ["a", None]),
    (pa.array([[0.1], None, [], [0.2, None]], pa.list_(pa.float32())), [[0.1], None, [], [0.2, None]]),
    (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), [["a", "b"], None]),
    (pa.array([["a"], None], pa.list_view(pa.string())), [["a"], None]),
    (pa.array([{"a": Decimal("1.0"), "b": [b"\0"]}, None]), [{"a": "1.0", "b": ["<1 bytes>"]}, None]),
    (pa.array([{}, None], pa.struct([])), [{}, None]),
    (
        pa.array([[("x", 1)], None, [("x", 1), ("x", 2)], []], pa.map_(pa.string(), pa.int32())),
        [{"x": 1}, None, [["x", 1], ["x", 2]], {}],
    ),
    (pa.array([[(7, "x")]], pa.map_(pa.int32(), pa.string())), [{"7": "x"}]),
    (pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]), ["a", "a", "b"]),
    (pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]), [1, "b"]),
    (pa.array([None, None]), [None, None]),
]


@pytest.mark.parametrize(("array", "expected"), CASES, ids=[str(array.type) for array, _ in CASES])
def test_a_column_reads_as_json_values_whole_and_in_slices(array: pa.Array, expected: list[Any]) -> None:
    assert values(array) == expected
    orjson.dumps(values(array))
    for start in range(len(array) + 1):
        assert values(array.slice(start)) == expected[start:]
        assert values(array.slice(start, 1)) == expected[start : start + 1]


def test_structs_with_two_fields_of_one_name_keep_both() -> None:
    array = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert values(array) == [{"a": 1, "a_": 2}]
    assert unique(["", "a", "a", "a_"]) == ["column1", "a", "a_", "a__"]


def test_python_values_follow_the_same_rules() -> None:
    east = dt.timezone(dt.timedelta(hours=2))
    assert readable(dt.datetime(2020, 1, 2, 3, tzinfo=east)) == "2020-01-02 01:00:00Z"
    assert readable({1: float("nan"), "b": (Decimal("1.10"), ID)}) == {"1": None, "b": ["1.10", str(ID)]}
    assert readable(dt.timedelta(seconds=1.5)) == 1.5
    assert readable(1 << 80) == str(1 << 80)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_bytes_are_their_text_or_say_how_many_they_are(data: bytes) -> None:
    assert binary(data) in (data.decode("utf-8", "replace"), f"<{len(data)} bytes>")


nested = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.binary()
    | st.floats()
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(), inner, max_size=3),
)


@settings(deadline=None)
@given(nested)
def test_whatever_a_reader_hands_over_can_be_written_as_json(value: Any) -> None:
    orjson.dumps(readable(value))
