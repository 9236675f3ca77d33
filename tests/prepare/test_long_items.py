"""What one item expands to bounds neither memory nor correctness: long items lie in several shards."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from in_process import InThisProcess

from sheaf import recipe_file
from sheaf.corpus import lineage, shards
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.formats import answers
from sheaf.prepare import read
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

LINES = 3000


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred kilobytes are a long item."""
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())
    monkeypatch.setattr(answers, "LONG_BYTES", 200_000)
    monkeypatch.setattr(read, "SHARD_BYTES", 300_000)


def recipe(base: Path, workspace: str) -> Recipe:
    text = f"""
name: long
sources: [{{name: files, uri: ./files}}]
prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}}}
workspace: ./{workspace}
"""
    return recipe_file.loads(text, base)


def line(number: int) -> bytes:
    """One in seven is the repeat of another, far away; one is broken."""
    if number == 1234:
        return b'{"text": "cut'
    number = number - 1500 if number % 7 == 0 and number > 1500 else number
    return orjson.dumps({"text": f"Record {number} of a long item, with some words about it.", "n": number % 5})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    files = folder / "files"
    files.mkdir()
    data = b"\n".join(line(n) for n in range(LINES)) + b"\n"
    (files / "a.txt").write_text("A short neighbour, which lies in a shard with others.")
    (files / "b.jsonl").write_bytes(data)
    (files / "c.jsonl.gz").write_bytes(gzip.compress(data + line(LINES + 1) + b"\n"))
    (files / "d.txt").write_text("Another short neighbour, which comes after the long ones.")
    return folder


@pytest.fixture(scope="module")
def whole(base: Path) -> dict[str, Any]:
    """The same data with the usual thresholds: nothing is long."""
    return prepare(recipe(base, "whole"), workers=1)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("seconds", "workspace")}


def item_rows(workspace: Path) -> list[dict[str, Any]]:
    store = Workspace(workspace)
    return [row for name in store.finished_shards() for row in shards.read(store.shard(name), "items").to_pylist()]


@pytest.mark.usefixtures("low")
def test_a_long_item_in_many_shards_gives_the_corpus_that_it_gives_in_one(base: Path, whole: dict[str, Any]) -> None:
    cut = prepare(recipe(base, "cut"))
    assert figures(cut) == figures(whole)
    parts = [row["part"] for row in item_rows(base / "cut") if row["path"] == "b.jsonl"]
    assert sorted(parts) == list(range(len(parts))) and len(parts) > 3
    here, there = CorpusVersion.open(base / "cut"), CorpusVersion.open(base / "whole")
    assert here.ledger().equals(there.ledger())
    assert here.quarantine().equals(there.quarantine())
    assert np.array_equal(here.documents.id, there.documents.id)
    assert prepare(recipe(base, "cut"))["items"]["read"] == 0


@pytest.mark.usefixtures("low")
def test_no_shard_is_larger_than_one_may_be(base: Path) -> None:
    prepare(recipe(base, "sizes"))
    store = Workspace(base / "sizes")
    for name in store.finished_shards():
        records = shards.read(store.shard(name), "records", ["text", "meta"])
        assert records.nbytes < 2 * read.SHARD_BYTES


@pytest.mark.usefixtures("low")
def test_every_part_of_a_long_item_is_traced(base: Path) -> None:
    prepare(recipe(base, "traced"))
    corpus = CorpusVersion.open(base / "traced")
    shard_of = corpus.documents.shard
    with lineage.Rereader(corpus) as again:
        for shard in np.unique(shard_of):
            number = int(np.flatnonzero(shard_of == shard)[-1])
            for origin in lineage.origins(corpus, number):
                assert again.text(origin) == corpus.text(number)


@pytest.mark.usefixtures("low")
def test_a_long_item_with_a_part_missing_is_read_again(base: Path, whole: dict[str, Any]) -> None:
    prepare(recipe(base, "lost"))
    store = Workspace(base / "lost")
    for name in store.finished_shards():
        rows = shards.read(store.shard(name), "items").to_pylist()
        if rows[0]["path"] == "b.jsonl" and rows[0]["part"] == 2:
            shutil.rmtree(store.shard(name))
    again = prepare(recipe(base, "lost"))
    assert again["items"]["read"] == 1
    assert again["corpus"] == whole["corpus"]


@pytest.mark.usefixtures("low")
def test_killed_between_two_parts_it_gives_the_same(
    base: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build, calls = shards.build, 0

    def dying(*arguments: Any, **options: Any) -> shards.ShardTables:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return build(*arguments, **options)

    monkeypatch.setattr(shards, "build", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(base, "killed"))
    assert any(row["part"] for row in item_rows(base / "killed"))
    assert prepare(recipe(base, "killed"))["corpus"] == whole["corpus"]


@pytest.mark.usefixtures("low")
def test_a_long_item_that_is_refused_near_its_end_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.txt").write_text("A short neighbour, which lies in a shard with others.")
    text = b"\n".join(line(n) for n in range(1000))
    (tmp_path / "files/b.jsonl").write_bytes(text)
    asked = recipe(tmp_path, "refused")
    limits = asked.prepare.limits.model_copy(update={"records": 900})
    result = prepare(asked.model_copy(update={"prepare": asked.prepare.model_copy(update={"limits": limits})}))
    assert result["quarantine"]["bomb"]["regions"] == 1
    assert result["bytes"]["in"] == sum(result["bytes"][k] for k in ("kept", "dropped", "quarantined"))
    assert not [p for p in (tmp_path / "refused").iterdir() if p.is_file() and p.name not in ("HEAD", ".lock")]


def test_rows_are_cut_where_their_bytes_say_however_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    from sheaf.formats.schema import PARSED_RECORDS

    texts = ["x" * (n % 97) for n in range(500)]
    rows = [
        {f.name: t if f.name == "text" else b"" if pa.types.is_large_binary(f.type) else None for f in PARSED_RECORDS}
        for t in texts
    ]
    empty = {"messages": "", "meta": "", "member": "", "locator": ""}
    table = pa.Table.from_pylist([{**row, **empty} for row in rows], PARSED_RECORDS)
    frames = [table.slice(start, 61) for start in range(0, 500, 61)]
    cut = [part["text"].to_pylist() for part in read._cut(iter([table]), 10_000)]
    assert [part["text"].to_pylist() for part in read._cut(iter(frames), 10_000)] == cut
    assert [t for part in cut for t in part] == texts and len(cut) > 5
