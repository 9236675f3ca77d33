"""Tables with pictures and sounds, as Hugging Face's libraries write them: a record each, its row's columns as meta."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import orc
from test_image_audio import png_that_claims, sound

Read = Callable[..., Any]
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LABEL = {"_type": "ClassLabel", "names": ["cat", "dog"]}


def png(colour: int, size: int = 9) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (colour, 2, 3)).save(out, "PNG")
    return out.getvalue()


def described(table: pa.Table, features: Any) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def arrow_stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def orc_file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    orc.write_table(table, sink)
    return sink.getvalue()


def pictures(*files: dict[str, Any] | None, **columns: list[Any]) -> pa.Table:
    return pa.table({"image": pa.array(files, FILE), **columns})


def locators(rows: list[dict[str, Any]]) -> list[Any]:
    return [json.loads(row["locator"]) for row in rows]


def metas(outcome: Any) -> list[dict[str, Any]]:
    return [json.loads(row["meta"]) for row in outcome.records]


@pytest.mark.parametrize("write", [parquet, arrow_stream, orc_file])
def test_each_row_with_a_picture_is_a_record_of_it(read: Read, write: Callable[[pa.Table], bytes]) -> None:
    files = [{"bytes": png(n), "path": f"{n}.png"} for n in range(3)]
    outcome = read("train-00000-of-00001.parquet", write(pictures(*files, label=[0, 1, 1], caption=["a", "b", "c"])))
    assert [r["kind"] for r in outcome.records] == ["image"] * 3 and set(outcome.texts) == {""}
    assert [r["payload"] for r in outcome.records] == [f["bytes"] for f in files]
    assert locators(outcome.records) == [{"row": 0}, {"row": 1}, {"row": 2}]
    first = metas(outcome)[0]
    assert (first["file_name"], first["label"], first["caption"]) == ("0.png", 0, "a")
    assert (first["media"], first["width"], first["height"]) == ("image/png", 9, 9)


def test_numbers_of_classes_have_their_names_beside_them(read: Read) -> None:
    table = pa.table(
        {
            "text": ["purring", "barking", "silence"],
            "label": [0, 1, -1],
            "tags": [[0, 1], [], [1, 7]],
        }
    )
    data = parquet(described(table, {"label": LABEL, "tags": {"_type": "Sequence", "feature": LABEL}}))
    found = metas(read("a.parquet", data))
    assert [m["label_name"] for m in found] == ["cat", "dog", None] and [m["label"] for m in found] == [0, 1, -1]
    assert [m["tags_name"] for m in found] == [["cat", "dog"], [], ["dog", None]]


def test_a_damaged_picture_costs_its_row(read: Read) -> None:
    good, cut = png(5, 300), png(6, 300)[:-40]
    rows = [{"bytes": b, "path": None} for b in (good, cut, cut, b"not a picture at all", png(7))]
    outcome = read("a.parquet", parquet(described(pictures(*rows), {"image": {"_type": "Image"}})))
    assert locators(outcome.records) == [{"row": 0}, {"row": 4}]
    assert locators(outcome.regions) == [{"row": [1, 2]}, {"row": [3, 3]}]
    assert outcome.reasons[0] in ("truncated", "corrupt") and outcome.reasons[1] == "unsupported"


def test_what_a_cell_holds_decides_its_type_and_a_film_is_refused_by_name(read: Read) -> None:
    film = b"\0\0\0\x18ftypM4A \0\0\0\0" + bytes(50)
    rows = [{"bytes": b, "path": "x.wav"} for b in (sound(), png(1), film)]
    table = described(pa.table({"audio": pa.array(rows, FILE)}), {"audio": {"_type": "Audio", "sampling_rate": 8000}})
    outcome = read("a.parquet", parquet(table))
    assert [r["kind"] for r in outcome.records] == ["audio", "image"]
    assert metas(outcome)[0]["sample_rate"] == 8000
    assert (outcome.reasons, outcome.regions[0]["detail"]) == (["unsupported"], "MP4 or related media")


def test_a_row_that_only_names_its_file_says_so(read: Read) -> None:
    outcome = read(
        "a.parquet", parquet(pictures({"bytes": None, "path": "/far/away.png"}, {"bytes": png(1), "path": None}))
    )
    assert outcome.reasons == ["empty"] and "/far/away.png" in outcome.regions[0]["detail"]
    assert locators(outcome.records) == [{"row": 1}]


def test_a_row_without_its_picture_is_read_as_other_rows_are(read: Read) -> None:
    outcome = read(
        "a.parquet", parquet(pictures(None, {"bytes": png(1), "path": None}, text=["some words", "caption"]))
    )
    assert [(r["kind"], r["text"]) for r in outcome.records] == [("text", "some words"), ("image", "")]


def test_several_pictures_in_a_row_are_told_apart_by_their_column(read: Read) -> None:
    table = pa.table(
        {
            "before": pa.array([{"bytes": png(1), "path": None}], FILE),
            "pages": pa.array([[{"bytes": png(2), "path": None}, {"bytes": png(3), "path": None}]], pa.list_(FILE)),
            "instruction": ["make it red"],
        }
    )
    outcome = read("a.parquet", parquet(table))
    assert locators(outcome.records) == [{"row": 0, "column": c} for c in ("before", "pages.0", "pages.1")]
    assert all(meta["instruction"] == "make it red" for meta in metas(outcome))


def test_plain_binary_is_a_picture_only_where_it_looks_like_one(read: Read) -> None:
    table = pa.table({"data": [png(1), b"\x01\x02\0\x03", b"plain words"], "text": ["one", "two", "three"]})
    outcome = read("a.parquet", parquet(table))
    assert [(r["kind"], r["text"]) for r in outcome.records] == [("image", ""), ("text", "two"), ("text", "three")]


def test_a_recipe_that_names_the_text_gets_the_text(read: Read) -> None:
    data = parquet(pictures({"bytes": png(1), "path": "1.png"}, caption=["a red square"]))
    (record,) = read("a.parquet", data, text="caption").records
    assert (record["kind"], record["text"]) == ("text", "a red square")


@pytest.mark.parametrize(
    "said",
    [
        b"not json",
        b"[" * 5000,
        b'{"info": {"features": ["image"]}}',
        b'{"info": {"features": {"image": {"_type": ["Image"]}, "label": {"_type": "ClassLabel", "names": [1]}}}}',
        b'{"info": {"features": {"none": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": {"0": "a"}}}}}',
        b'{"info": {"features": {"label": {"_type": "Image"}, "image": [[[[]]]]}}}',
        b"\xff\xfe",
    ],
)
def test_whatever_a_table_claims_of_itself_its_rows_are_read(read: Read, said: bytes) -> None:
    table = pictures({"bytes": png(1), "path": None}, label=[0]).replace_schema_metadata({"huggingface": said})
    (record,) = read("a.parquet", parquet(table)).records
    assert record["kind"] == "image" and json.loads(record["meta"])["label"] == 0


def test_a_picture_of_too_many_pixels_in_a_row_costs_nothing(read: Read) -> None:
    outcome = read("a.parquet", parquet(pictures({"bytes": png_that_claims(60_000, 60_000), "path": None})))
    assert outcome.reasons == ["bomb"]
