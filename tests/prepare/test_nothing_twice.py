"""What was read is not opened again: a change costs what has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest
from in_process import InThisProcess

from sheaf import recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe
from sheaf.sources.base import Item
from sheaf.sources.folder import FolderSource

FILES = 400


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the items that are opened, in order."""
    found: list[str] = []
    open_item = FolderSource.open_item

    def counted(source: FolderSource, item: Item) -> BinaryIO:
        found.append(item.path)
        return open_item(source, item)

    monkeypatch.setattr(FolderSource, "open_item", counted)
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "files").mkdir()
    for n in range(FILES):
        (tmp_path / f"files/{n:04d}.txt").write_text(f"File {n} says something of its own about shards and ledgers.")
    (tmp_path / "files/copy.txt").write_text("File 7 says something of its own about shards and ledgers.")
    text = """
name: twice
sources: [{name: files, uri: ./files}]
prepare: {tokenizer: {train: bpe, vocab_size: 300}}
"""
    return recipe_file.loads(text, tmp_path)


def test_a_change_opens_what_has_changed_and_nothing_else(recipe: Recipe, tmp_path: Path, opened: list[str]) -> None:
    first = prepare(recipe)
    assert len(opened) == FILES + 1
    opened.clear()
    assert prepare(recipe)["corpus"] == first["corpus"]
    assert opened == []
    (tmp_path / "files/0123.txt").write_text("File 123 has another text now, and only it is read again.")
    second = prepare(recipe)
    assert opened == ["0123.txt"]
    assert second["items"] == {"seen": FILES + 1, "read": 1, "unchanged": FILES, "quarantined": 0, "deferred": 0}


def test_a_deleted_item_leaves_unless_another_origin_keeps_its_record(
    recipe: Recipe, tmp_path: Path, opened: list[str]
) -> None:
    prepare(recipe)
    opened.clear()
    (tmp_path / "files/0007.txt").unlink()
    (tmp_path / "files/0008.txt").unlink()
    after = prepare(recipe)
    assert opened == [] and after["records"]["kept"] == FILES - 1
    corpus = CorpusVersion.open(tmp_path / "workspace")
    texts = " ".join(corpus.texts(range(len(corpus.documents))))
    assert "File 7 says" in texts and "File 8 says" not in texts


def test_a_file_that_is_touched_without_a_change_is_read_again_and_changes_nothing(
    recipe: Recipe, tmp_path: Path, opened: list[str]
) -> None:
    first = prepare(recipe)
    opened.clear()
    os.utime(tmp_path / "files/0001.txt", ns=(1, 1))
    assert prepare(recipe)["corpus"] == first["corpus"]
    assert opened == ["0001.txt"]
