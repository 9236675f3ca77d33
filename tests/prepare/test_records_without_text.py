"""Pictures and sounds through the whole of it: kept, counted, found again, and never trained on by mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from picture_files import png, write

import sheaf
from sheaf.corpus.lineage import without_text
from sheaf.errors import DataRefused, UsageError
from sheaf.recipe import Recipe
from sheaf.report.facts import corpus_facts

WORDS = "Words enough that the rule of length lets this record pass, and a number: "


def recipe(tmp_path: Path, **prepare: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "sources": [{"name": "s", "uri": str(tmp_path / "in"), "label": "folder"}],
            "workspace": str(tmp_path / "ws"),
            "prepare": {"tokenizer": {"train": "bpe", "vocab_size": 300}, **prepare},
            "train": {"sequence_length": 16, "batch_tokens": 16, "budget": {"steps": 1}},
        }
    )


def test_a_folder_of_nothing_but_pictures_makes_a_corpus(tmp_path: Path) -> None:
    write(tmp_path / "in", {f"{kind}/{n}.png": png(10 * n + len(kind)) for kind in ("cat", "mouse") for n in range(3)})
    corpus = sheaf.prepare(recipe(tmp_path), workers=1)
    assert corpus.manifest["tokens"] == 0 and len(corpus.documents) == 0
    assert corpus.decisions()["kept"].to_pylist() == [True] * 6
    assert corpus.report(tmp_path / "r.html").stat().st_size > 0


def test_training_on_pictures_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "in", {"cat/1.png": png(1)})
    with pytest.raises(DataRefused, match="no text to train on") as caught:
        sheaf.train(recipe(tmp_path))
    assert "pictures or sounds" in caught.value.why
    assert not list((tmp_path / "ws").glob("runs/*"))


def test_a_tokenizer_that_saw_no_text_does_not_stay(tmp_path: Path) -> None:
    write(tmp_path / "in", {"cat/1.png": png(1)})
    before = sheaf.prepare(recipe(tmp_path), workers=1)
    write(tmp_path / "in", {"cat/about.txt": 20 * WORDS.encode()})
    after = sheaf.prepare(recipe(tmp_path), workers=1)
    assert before.vocab_size < after.vocab_size and after.manifest["tokens"] > 0


def test_records_of_a_kind_come_with_their_bytes_labels_and_places(tmp_path: Path) -> None:
    files = {"cat/1.png": png(1), "dog/1.png": png(2), "dog/copy.png": png(2), "dog/x.txt": WORDS.encode()}
    write(tmp_path / "in", files)
    corpus = sheaf.prepare(recipe(tmp_path), workers=1)
    found = {record["origins"][0]["path"]: record for record in corpus.records_of("image")}
    assert {path: record["payload"] for path, record in found.items()} == {
        p: files[p] for p in ("cat/1.png", "dog/1.png")
    }
    dog = found["dog/1.png"]
    assert (dog["kind"], dog["source"], dog["meta"]["label"], dog["meta"]["width"]) == ("image", "s", "dog", 8)
    assert [o["path"] for o in dog["origins"]] == ["dog/1.png", "dog/copy.png"]
    assert dog["origins"][0]["locator"] == {"bytes": [0, len(files["dog/1.png"])]} and len(dog["id"]) == 32
    assert [record["text"] for record in corpus.records_of("text")] == [WORDS.strip()]
    assert list(corpus.records_of("audio")) == []


def test_records_that_a_rule_dropped_are_not_among_them(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a/1.txt": WORDS.encode(), "a/2.txt": b"short"})
    corpus = sheaf.prepare(recipe(tmp_path), workers=1)
    assert [record["origins"][0]["path"] for record in corpus.records_of("text")] == ["a/1.txt"]


def test_a_kind_that_does_not_exist_is_named(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a/1.txt": WORDS.encode()})
    corpus = sheaf.prepare(recipe(tmp_path), workers=1)
    with pytest.raises(UsageError, match="images"):
        next(corpus.records_of("images"))


def test_repeats_in_the_report_are_those_of_the_texts(tmp_path: Path) -> None:
    texts = {f"t/{n}.txt": f"{WORDS} {n}".encode() for n in range(6)}
    pictures = {f"p/{n}-{m}.png": png(n) for n in range(6) for m in range(3)}  # each seen three times
    write(tmp_path / "in", {**texts, **pictures, "t/again.txt": texts["t/4.txt"]})
    corpus = sheaf.prepare(recipe(tmp_path), workers=1)
    assert [(r.occurrences, r.text) for r in corpus_facts(corpus).repeats] == [(2, texts["t/4.txt"].decode())]


def test_an_item_s_records_without_text_are_counted_for_trace(tmp_path: Path) -> None:
    write(tmp_path / "in", {"p/1.png": png(1), "p/2.png": png(2), "p/x.txt": WORDS.encode()})
    corpus = sheaf.prepare(recipe(tmp_path), workers=1)
    assert without_text(corpus, ".png") == 2 and without_text(corpus, "x.txt") == 0
