"""What `sheaf init` writes for data sets with labels and splits, and that it prepares as written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import sheaf
from sheaf.init import init
from sheaf.recipe import Recipe
from sheaf.recipe_file import load

QUESTION = "What is the number {}, as somebody would say it aloud?"


def png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (colour % 256, colour // 256, 3)).save(out, "PNG")
    return out.getvalue()


def write(root: Path, *names: str, content: bytes | None = None) -> None:
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if content is not None else png(len(list(root.rglob("*"))) + n))


def written(tmp_path: Path) -> Recipe:
    init(tmp_path / "in", tmp_path / "sheaf.yaml", force=True)
    return load(tmp_path / "sheaf.yaml")


def items(recipe: Recipe) -> list[str]:
    return sorted(sheaf.prepare(recipe, workers=1).ledger()["path"].to_pylist())


def test_folders_full_of_pictures_are_labels(tmp_path: Path) -> None:
    write(tmp_path / "in", *(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(3)))
    (source,) = written(tmp_path).sources
    assert (source.name, source.label, source.split) == ("images", "folder", None)


def test_splits_above_the_labels_leave_what_measures_out_and_say_so(tmp_path: Path) -> None:
    write(
        tmp_path / "in",
        *(f"{s}/{kind}/{n}.png" for s in ("train", "test") for kind in ("cat", "dog") for n in range(3)),
    )
    (source,) = written(tmp_path).sources
    assert (source.label, source.split) == ("folder", "train")
    assert "left out, to measure with: 6 of test" in (tmp_path / "sheaf.yaml").read_text()


@pytest.mark.parametrize(
    "names",
    [
        ["holiday/1.png", "holiday/2.png", "holiday/3.png"],  # one folder says nothing
        ["a/1.png", "b/1.png", "c/1.png"],  # a folder for each
        ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "3.png"],  # and one beside them
        ["train/1.png", "train/2.png", "test/1.png", "test/2.png", "x/1.png"],
    ],
)
def test_without_clear_evidence_nothing_is_said(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path / "in", *names)
    (source,) = written(tmp_path).sources
    assert (source.label, source.split) == (None, None)


def test_a_table_of_metadata_goes_to_the_pictures_and_not_to_the_tables(tmp_path: Path) -> None:
    data = tmp_path / "in"
    write(data, "art/1.png", "art/2.png")
    write(data, "art/metadata.csv", content=b"file_name,caption\n1.png,a first one\n2.png,a second one\n")
    rows = [{"question": QUESTION.format(n), "answer": f"It is said as {n}, and then one waits."} for n in range(9)]
    write(data, "rows.jsonl", content="".join(json.dumps(row) + "\n" for row in rows).encode())
    write(data, "other/metadata.csv", content=b"name,size\nno picture is beside this one,4\nnor this,5\n")
    recipe = written(tmp_path)
    sources = {source.name: source for source in recipe.sources}
    assert sources["images"].label == "metadata"
    corpus = sheaf.prepare(recipe, workers=1)
    captions = sorted(record["meta"]["caption"] for record in corpus.records_of("image"))
    assert captions == ["a first one", "a second one"]
    ledger = corpus.ledger()
    of = dict(zip(ledger["path"].to_pylist(), ledger["source"].to_pylist(), strict=True))
    assert of.pop("art/metadata.csv") == "images" and len(of) == len(ledger) - 1
    assert of["other/metadata.csv"].startswith("tables")


def test_metadata_that_names_no_files_is_an_ordinary_table(tmp_path: Path) -> None:
    write(tmp_path / "in", "art/1.png", "art/2.png")
    write(tmp_path / "in", "art/metadata.csv", content=b"painter,year\nsomebody of that name,1871\nanother,1872\n")
    recipe = written(tmp_path)
    assert [(s.name, s.label) for s in recipe.sources] == [("tables", None), ("images", None)]
    assert items(recipe) == ["art/1.png", "art/2.png", "art/metadata.csv"]


def test_tables_named_by_split_are_taken_for_training_alone(tmp_path: Path) -> None:
    table = pa.table({"text": [f"The words of row {n}, which are enough to be kept." for n in range(9)]})
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        (tmp_path / "in" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "in" / "data" / f"{name}.parquet")
    recipe = written(tmp_path)
    (source,) = recipe.sources
    assert source.split == "train"
    assert items(recipe) == [f"data/train-0000{n}-of-00002.parquet" for n in range(2)]


def test_rows_with_pictures_are_not_turned_into_their_captions(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    files = pa.array([{"bytes": png(n), "path": f"{n}.png"} for n in range(9)], kind)
    table = pa.table({"image": files, "text": [f"A caption of some length for the picture {n}." for n in range(9)]})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    recipe = written(tmp_path)
    assert recipe.sources[0].text is None and recipe.sources[0].map is None
    assert "column 'image' holds files" in (tmp_path / "sheaf.yaml").read_text()
    assert len(list(sheaf.prepare(recipe, workers=1).records_of("image"))) == 9
