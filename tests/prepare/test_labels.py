"""Labels from a folder's name or its table of metadata; splits by name."""

from __future__ import annotations

import io
from pathlib import Path

import orjson
import pytest
from PIL import Image

from sheaf.corpus import shards
from sheaf.corpus.workspace import Workspace
from sheaf.errors import DataRefused
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe
from sheaf.sources.splits import split_of

WORDS = "A caption that is long enough to be kept by the rule of length. "


def png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 2, 3)).save(out, "PNG")
    return out.getvalue()


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def recipe(tmp_path: Path, **source: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "sources": [{"name": "s", "uri": str(tmp_path / "in"), **source}],
            "workspace": str(tmp_path / "ws"),
            "prepare": {"tokenizer": {"train": "bpe", "vocab_size": 300}},
        }
    )


def metas(tmp_path: Path) -> dict[str, dict[str, object]]:
    store = Workspace(tmp_path / "ws")
    found: dict[str, dict[str, object]] = {}
    for shard in store.finished_shards():
        for row in shards.read(store.shard(shard), "records").to_pylist():
            found[row["origins"][0]["path"]] = orjson.loads(row["meta"])
    return found


def test_the_folder_that_a_picture_lies_in_is_its_label(tmp_path: Path) -> None:
    write(tmp_path / "in", {"cat/1.png": png(1), "dog/1.png": png(2), "dog/about.txt": WORDS.encode()})
    prepare(recipe(tmp_path, label="folder"), workers=1)
    labels = {path: meta["label"] for path, meta in metas(tmp_path).items()}
    assert labels == {"cat/1.png": "cat", "dog/1.png": "dog", "dog/about.txt": "dog"}


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_a_table_of_metadata_labels_the_files_it_names_and_trains_nothing(tmp_path: Path, table: str) -> None:
    rows = [{"file_name": "1.png", "text": "a red one"}, {"file_name": "sub/2.png", "text": "a blue one"}]
    data = (
        b"file_name,text\n" + b"".join(f"{r['file_name']},{r['text']}\n".encode() for r in rows)
        if table.endswith("csv")
        else b"".join(orjson.dumps(r) + b"\n" for r in rows)
    )
    write(tmp_path / "in", {"a/1.png": png(1), "a/sub/2.png": png(2), f"a/{table}": data, "a/x.txt": WORDS.encode()})
    done = prepare(recipe(tmp_path, label="metadata"), workers=1)
    found = metas(tmp_path)
    assert found["a/1.png"]["text"] == "a red one" and found["a/sub/2.png"]["text"] == "a blue one"
    assert f"a/{table}" not in found and done["records"]["quarantined"] == 0
    assert done["bytes"]["in"] == done["bytes"]["kept"]


def test_a_corrected_label_costs_the_reading_of_one_item(tmp_path: Path) -> None:
    table = b'{"file_name": "1.png", "label": "%s"}\n{"file_name": "2.png", "label": "dog"}\n'
    write(
        tmp_path / "in", {"1.png": png(1), "2.png": png(2), "x.txt": WORDS.encode(), "metadata.jsonl": table % b"cat"}
    )
    assert prepare(recipe(tmp_path, label="metadata"), workers=1)["items"]["read"] == 4
    write(tmp_path / "in", {"metadata.jsonl": table % b"tabby"})
    assert prepare(recipe(tmp_path, label="metadata"), workers=1)["items"]["read"] == 2  # the table, and picture 1


def test_a_split_takes_only_what_its_name_says(tmp_path: Path) -> None:
    rows = {name: f"{name}: {WORDS}".encode() for name in ("data/train-00000.txt", "data/test-00000.txt", "README.txt")}
    write(tmp_path / "in", rows)
    done = prepare(recipe(tmp_path, split="train"), workers=1)
    assert done["items"]["seen"] == 1 and set(metas(tmp_path)) == {"data/train-00000.txt"}
    with pytest.raises(DataRefused) as raised:
        prepare(recipe(tmp_path, split="validation"), workers=1)
    assert "names the split 'validation'" in raised.value.why


def test_labels_of_a_table_that_is_not_there_are_not_left_out_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "in", {"cat/1.png": png(1)})
    with pytest.raises(DataRefused, match="no table of labels"):
        prepare(recipe(tmp_path, label="metadata"), workers=1)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("squad_dev.jsonl", "validation"),
        ("test/cat/1.png", "test"),
        ("constraint/retraining.txt", ""),
        ("train/eval_loop.py", "test"),
        ("Training.csv", "train"),
    ],
)
def test_split_of(path: str, split: str) -> None:
    assert split_of(path) == split
