"""A changed threshold only selects anew: no task runs, unless a stage is newly asked for, and then only that one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from in_process import InThisProcess

from sheaf import recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import DataRefused
from sheaf.prepare.pipeline import prepare
from sheaf.prepare.select import similar


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many tasks ran, by the module of their function."""
    counted: Counter[str] = Counter()

    class Counting(InThisProcess):
        def run(self, tasks: Any, progress: Callable[[int], None] | None = None) -> Iterator[Any]:
            for task, result in super().run(tasks, progress):
                counted[task.function.partition(":")[0].removeprefix("sheaf.prepare.")] += 1
                yield task, result

    monkeypatch.setattr("sheaf.engine.make", lambda *_: Counting())
    return counted


@pytest.fixture
def base(tmp_path: Path) -> Path:
    rng = random.Random(1)
    words = [f"w{n}" for n in range(500)]
    texts = [" ".join(rng.choices(words, k=rng.randint(5, 80))) for _ in range(300)]
    again = [f"{text} again" for text in texts[:40] if len(text) > 99]
    lines = [orjson.dumps({"text": text}) for text in (*texts, *again)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "exam.txt").write_text(texts[0])
    return tmp_path


def run(base: Path, **changed: Any) -> dict[str, Any]:
    said = {"length": {"min_characters": 10}, "tokenizer": {"train": "bpe", "vocab_size": 300}, **changed}
    recipe = {"name": "again", "sources": [{"name": "rows", "uri": "./rows.jsonl"}], "prepare": said}
    return prepare(recipe_file.loads(orjson.dumps(recipe).decode(), base))


def test_a_changed_threshold_runs_no_task(base: Path, ran: Counter[str]) -> None:
    first = run(base)
    assert set(ran) == {"read", "score", "encode"}
    ran.clear()
    kept = first["records"]["kept"]
    for changed in (
        {"length": {"min_characters": 100}},
        {"filters": ["score.words > 20"]},
        {"filters": ["score.words > 30"]},
        {"languages": ["en"], "length": {"min_characters": 0}, "admit": [{"path": "*", "reason": "language"}]},
    ):
        again = run(base, **changed)
        assert not ran and again["tokens"] > 0
        assert (again["records"]["kept"] < kept) == ("admit" not in changed)
    assert run(base)["corpus"] == first["corpus"] and not ran


def test_a_stage_that_is_newly_asked_for_is_all_that_runs(base: Path, ran: Counter[str]) -> None:
    run(base)
    for changed, module in (
        ({"dedup": {"near": 0.8}}, "near.minhash"),
        ({"privacy": {"email": "drop"}}, "protect"),
        ({"decontaminate": [str(base / "exam.txt")]}, "decontaminate"),
    ):
        ran.clear()
        before = run(base, **changed)
        assert set(ran) == {module}
        assert run(base, **changed, refuse_above=0.9)["corpus"] == before["corpus"] and set(ran) == {module}


def test_a_source_that_would_be_eaten_leaves_the_last_version_as_it_is(
    base: Path, ran: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(base)
    monkeypatch.setattr(similar, "FEW", 1)
    with pytest.raises(DataRefused, match="near duplicates would take") as caught:
        run(base, dedup={"near": 0.8, "max_loss": 0})
    assert caught.value.exit_code == 3
    assert CorpusVersion.open(base / "workspace").digest == first["corpus"]
    assert len(list((base / "workspace/corpora").iterdir())) == 1 and not list((base / "workspace").glob(".select*"))


def test_the_manifest_says_what_made_the_version_and_counts_what_became_of_it(base: Path, ran: Counter[str]) -> None:
    told = run(base, dedup={"near": 0.8}, filters=["gopher"])
    manifest = CorpusVersion.open(base / "workspace").manifest
    assert manifest["stages"]["near"]["threshold"] == 0.8 and "gopher" in manifest["stages"]["rules"]["sets"]
    assert {"read", "formats", "score", "select", "tokenizer"} <= set(manifest["stages"])
    assert len(manifest["recipe"]) == 32
    counts = manifest["counts"]
    assert counts["records"] == told["records"] == counts["sources"]["rows"]["records"]
    decisions = CorpusVersion.open(base / "workspace").decisions()
    by_reason = Counter(reason or "kept" for reason in decisions["reason"].to_pylist())
    assert counts["sources"]["rows"]["decisions"] == dict(by_reason)
    again = run(base, dedup={"near": 0.8}, filters=["gopher"], refuse_above=0.5)
    assert again["corpus"] == told["corpus"]
    assert CorpusVersion.open(base / "workspace").manifest["recipe"] != manifest["recipe"]
