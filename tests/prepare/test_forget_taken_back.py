"""What was forgotten by mistake comes back whole; a conversation is forgotten as a text is; what a purge removes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest
from in_process import InThisProcess

from sheaf import api, recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.files import this_machine
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

CANARY = "violet-armadillo"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())
    said = {
        "name": "back",
        "sources": [{"name": "rows", "uri": "./rows"}, {"name": "chats", "uri": "./chats", "map": "openai"}],
        "prepare": {"length": {"min_characters": 0}, "tokenizer": {"train": "bpe", "vocab_size": 300}},
    }
    for name in ("rows", "chats"):
        (tmp_path / name).mkdir()
    rows: list[dict[str, Any]] = [{"text": f"Row {n} tells of {name}."} for n, name in enumerate((CANARY, "nothing"))]
    (tmp_path / "rows/a.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    chats: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"Tell me of {name}."}, {"role": "assistant", "content": "No."}]}
        for name in (CANARY, "nothing")
    ]
    (tmp_path / "chats/a.jsonl").write_bytes(b"\n".join(map(orjson.dumps, chats)))
    return recipe_file.loads(orjson.dumps(said).decode(), tmp_path)


def texts(recipe: Recipe) -> list[str]:
    corpus = CorpusVersion.open(recipe.workspace)
    return sorted(corpus.texts(range(len(corpus.documents))))


@pytest.mark.parametrize("purge", [False, True])
def test_what_was_forgotten_by_mistake_comes_back_whole(recipe: Recipe, purge: bool) -> None:
    prepare(recipe)
    before = texts(recipe)
    assert len(before) == 4
    told = api.forget(recipe, matching=CANARY, yes=True, purge=purge)
    assert told["gone"]["records"] == 2 and not any(CANARY in text for text in texts(recipe))
    assert prepare(recipe)["corpus"] == told["corpus"]
    (Path(recipe.workspace) / "forgotten.json").unlink()
    prepare(recipe)
    assert texts(recipe) == before


def test_a_record_that_was_read_while_it_was_forgotten_comes_back_too(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe)
    api.forget(recipe, matching=CANARY, yes=True, purge=True)
    (tmp_path / "rows/a.jsonl").rename(tmp_path / "rows/b.jsonl")
    prepare(recipe)
    assert not any(CANARY in text for text in texts(recipe))
    (Path(recipe.workspace) / "forgotten.json").unlink()
    prepare(recipe)
    assert sum(CANARY in text for text in texts(recipe)) == 2


def test_a_purge_removes_what_a_killed_process_left_half_written(recipe: Recipe) -> None:
    prepare(recipe)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = Workspace.at(recipe.workspace).shard(f".ab.tmp-{this_machine()}-{ended.pid}")
    left.mkdir()
    (left / "records.parquet").write_text(CANARY)
    api.forget(recipe, purge=True)
    assert not left.exists() and len(texts(recipe)) == 4
