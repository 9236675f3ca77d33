"""Records of equal text that have other things beside it: what is beside it comes and goes with its own item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from in_process import InThisProcess

from sheaf import recipe_file
from sheaf.corpus.lineage import origins
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.prepare.forget import Wanted, carry_out, find, purge
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

TEXT = "The last ferry leaves the northern quay at a quarter past nine on Sundays."


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())


def recipe(base: Path, workspace: str = "./workspace") -> Recipe:
    said = {
        "name": "equal",
        "workspace": workspace,
        "sources": [{"name": "rows", "uri": "./rows"}],
        "prepare": {"tokenizer": {"train": "bpe", "vocab_size": 300}},
    }
    return recipe_file.loads(orjson.dumps(said).decode(), base)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    for name in ("a", "b", "c"):
        lines = [{"text": TEXT, "by": f"author-{name}"}, {"text": f"{TEXT} And this one is of {name} alone."}]
        (tmp_path / f"rows/{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return tmp_path


def metas(corpus: CorpusVersion) -> list[Any]:
    return [orjson.loads(record["meta"]) for record in corpus.records(range(len(corpus.documents)))]


def test_what_stood_beside_a_text_goes_with_its_item(base: Path) -> None:
    prepare(recipe(base))
    assert {"by": "author-a"} in metas(CorpusVersion.open(base / "workspace"))
    (base / "rows/a.jsonl").unlink()
    again = prepare(recipe(base))
    prepare(recipe(base, "./fresh"))
    assert again["items"]["read"] == 0
    assert metas(CorpusVersion.open(base / "workspace")) == metas(CorpusVersion.open(base / "fresh"))


def test_all_places_of_a_text_are_its_origins(base: Path) -> None:
    prepare(recipe(base))
    corpus = CorpusVersion.open(base / "workspace")
    number = corpus.texts(range(len(corpus.documents))).index(TEXT)
    assert [origin["path"] for origin in origins(corpus, number)] == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_a_forgotten_item_leaves_nothing_in_a_record_that_others_have_too(base: Path) -> None:
    prepare(recipe(base))
    corpus = CorpusVersion.open(base / "workspace")
    carry_out(corpus, recipe(base), find(corpus, Wanted(item="a.jsonl")), {})
    purge(Workspace.at(recipe(base).workspace), recipe(base))
    left = CorpusVersion.open(base / "workspace")
    assert {"by": "author-b"} in metas(left) and {"by": "author-a"} not in metas(left)
