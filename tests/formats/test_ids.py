"""The ids of records follow from what they are, whichever way they are computed."""

from __future__ import annotations

import hashlib
import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.formats import ids
from sheaf.formats.blake2_lanes import digests  # loads the compiler: from here on there are two ways
from sheaf.formats.ids import places, record_ids
from sheaf.formats.normalise import content_of, record_id

SIZES = st.sampled_from([0, 1, 5, 122, 123, 124, 127, 128, 129, 250, 251, 252, 700, 5000])
TEXTS = st.builds(lambda size, letter: letter * size, SIZES, st.sampled_from("aé漢"))
ROWS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["text", "text", "text", "chat", "preference", "image", "row"]),
        "text": TEXTS | st.text(max_size=20),
        "messages": st.sampled_from(["", "", '[{"role":"user","content":"x"}]']),
        "payload": st.sampled_from([b"", b"", b"\x89PNG"]),
        "meta": st.sampled_from(["{}", '{"tools":[{"name":"f"}]}']),
    }
)
SCHEMA = pa.schema(
    {
        **{"kind": pa.string(), "text": pa.large_string(), "messages": pa.large_string()},
        **{"payload": pa.large_binary(), "meta": pa.string()},
    }
)


@pytest.mark.parametrize("compiled", [False, True])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, max_size=40), cut=st.integers(0, 5))
def test_ids_are_those_of_each_record_by_itself(compiled: bool, rows: list[dict[str, object]], cut: int) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    table = pa.concat_tables([table.slice(cut), table.slice(0, cut)])  # columns that begin inside their buffers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_spent", 1e12 if compiled else -1e12)
        if not compiled:
            patch.delitem(sys.modules, "numba")
        found = record_ids(table)
    wanted = [
        record_id(
            row["text"], row["kind"], content_of(row["kind"], row["payload"], row["messages"].encode(), row["meta"])
        )
        for row in table.to_pylist()
    ]
    assert found.to_pylist() == wanted


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=30), st.binary(max_size=100))
def test_digests_side_by_side_are_those_of_hashlib(texts: list[bytes], prefix: bytes) -> None:
    column = pa.array(texts, pa.large_binary())
    starts, ends, data = places(column)
    wanted = [hashlib.blake2b(prefix + text, digest_size=16).digest() for text in texts]
    assert digests(data, starts, ends, prefix).tobytes() == b"".join(wanted)
