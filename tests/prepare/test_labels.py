"""Labels from a folder's name or its table of metadata; splits by name."""

from __future__ import annotations

import tempfile
from pathlib import Path

import orjson
import pytest
from picture_files import png, write

from sheaf.corpus import shards
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.errors import DataRefused
from sheaf.formats import labels
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Limits, Recipe
from sheaf.sources.splits import split_of

WORDS = "A caption that is long enough to be kept by the rule of length. "


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
    found = {path: meta["label"] for path, meta in metas(tmp_path).items()}
    assert found == {"cat/1.png": "cat", "dog/1.png": "dog", "dog/about.txt": "dog"}


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


def notes(tmp_path: Path) -> dict[str, str]:
    """What the ledger notes of each item."""
    table = CorpusVersion.open(tmp_path / "ws").ledger()
    return dict(zip(table["path"].to_pylist(), table["notes"].to_pylist(), strict=True))


def test_where_rows_and_files_do_not_fit_together_is_noted(tmp_path: Path) -> None:
    rows = (b'{"file_name": "1.png", "n": 1}', b'{"file_name": "1.png", "n": 2}', b'{"file_name": "gone.png"}')
    table = b"\n".join([*rows, b'{"n": 3}', b"{broken", b""])
    write(tmp_path / "in", {"a/1.png": png(1), "a/2.png": png(2), "b/3.png": png(3), "a/metadata.jsonl": table})
    prepare(recipe(tmp_path, label="metadata"), workers=1)
    said = notes(tmp_path)["a/metadata.jsonl"]
    for note in (
        "1 rows name no file that is here: a/gone.png",
        "1 files have no row in it: a/2.png",
        "1 rows name a file once more",
        "1 rows have no file_name",
        "1 parts of it could not be read: bad-json",
    ):
        assert note in said
    assert metas(tmp_path)["a/1.png"]["n"] == 2


def test_the_nearest_table_counts(tmp_path: Path) -> None:
    far, near = (b'{"file_name": "%s", "by": "%s"}\n' % pair for pair in ((b"a/1.png", b"far"), (b"1.png", b"near")))
    write(tmp_path / "in", {"a/1.png": png(1), "metadata.jsonl": far, "a/metadata.jsonl": near})
    prepare(recipe(tmp_path, label="metadata"), workers=1)
    assert metas(tmp_path)["a/1.png"]["by"] == "near"


def test_a_row_may_name_several_files(tmp_path: Path) -> None:
    table = b"before_file_name,after_file_name,asked\n1.png,2.png,make it blue\n"
    write(tmp_path / "in", {"1.png": png(1), "2.png": png(2), "metadata.csv": table})
    prepare(recipe(tmp_path, label="metadata"), workers=1)
    found = metas(tmp_path)
    for path in ("1.png", "2.png"):
        assert (found[path]["asked"], found[path]["after_file_name"]) == ("make it blue", "2.png")


def test_a_table_above_the_splits_labels_the_one_that_is_wanted(tmp_path: Path) -> None:
    table = b"file_name,label\ntrain/1.png,cat\ntest/1.png,dog\n"
    write(tmp_path / "in", {"train/1.png": png(1), "test/1.png": png(2), "metadata.csv": table})
    done = prepare(recipe(tmp_path, label="metadata", split="train"), workers=1)
    assert {path: meta["label"] for path, meta in metas(tmp_path).items()} == {"train/1.png": "cat"}
    assert done["items"]["seen"] == 2 and "no file" not in notes(tmp_path)["metadata.csv"]


def test_a_name_with_accents_is_found_as_it_is_spelt_on_disk(tmp_path: Path) -> None:
    spelt = "Cafe\u0301.png"  # as macOS writes it
    write(tmp_path / "in", {spelt: png(1), "metadata.csv": f"file_name,label\n{spelt},cup\n".encode()})
    prepare(recipe(tmp_path, label="metadata"), workers=1)
    assert metas(tmp_path)[spelt]["label"] == "cup"


def test_a_folder_called_as_a_split_is_no_label(tmp_path: Path) -> None:
    write(tmp_path / "in", {"train/1.png": png(1), "train/cat/2.png": png(2)})
    prepare(recipe(tmp_path, label="folder"), workers=1)
    assert {path: meta.get("label") for path, meta in metas(tmp_path).items()} == {
        "train/1.png": None,
        "train/cat/2.png": "cat",
    }


def test_who_merely_claims_to_be_a_table_of_labels_is_not_believed() -> None:
    data = WORDS.encode()
    with Sandbox(Limits()) as sandbox, tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        parsed = sandbox.parse([ItemInput(file, "x", len(data), labels.MEDIA)], ParseOptions())
    assert parsed.regions["reason"].to_pylist() == ["unsupported"]
