"""Sheaf from Python: names that load nothing, rooms that can be called, and a loader for any loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sheaf
from sheaf.errors import RecipeError, UsageError
from sheaf.recipe import MixtureEntry

RECIPE = """\
name: micro
sources: [{name: a, uri: ./a}, {name: b, uri: ./b}]
prepare: {tokenizer: {train: bpe, vocab_size: 400}}
model: {hidden_size: 32, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 64}
train: {sequence_length: 32, batch_tokens: 128, budget: {steps: 3}, precision: fp32, compile: "off", held_out: 0.1}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    for source in "ab":
        (folder / source).mkdir()
        for n in range(12):
            (folder / source / f"{n}.txt").write_text(
                f"Text {n} of source {source}. " + "Many words follow here. " * 20
            )
    (folder / "sheaf.yaml").write_text(RECIPE)
    return folder / "sheaf.yaml"


@pytest.fixture(scope="module")
def corpus(recipe: Path) -> Any:
    return sheaf.prepare(sheaf.load(recipe), workers=1)


def test_importing_sheaf_loads_no_library(tmp_path: Path) -> None:
    code = "import sys, sheaf; print(sheaf.__version__, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(done.stdout.split()).isdisjoint({"torch", "numpy", "pyarrow", "pydantic", "cyclopts", "rich"})


def test_every_public_name_is_there_and_no_other() -> None:
    for name in sheaf.__all__:
        assert getattr(sheaf, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = sheaf.nothing_of_this_name  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("first", ["import sheaf.prepare.pipeline", "import sheaf.train.journal", "pass"])
def test_prepare_and_train_can_be_called_whatever_was_imported_before(first: str) -> None:
    code = f"{first}\nimport sheaf\nassert callable(sheaf.prepare) and callable(sheaf.train)\nsheaf.prepare('no.yaml')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RecipeError: there is no such recipe" in done.stderr


def test_load_reads_a_recipe_with_overrides_and_passes_a_recipe_through(recipe: Path) -> None:
    loaded = sheaf.load(recipe, ["train.seed=8"])
    assert loaded.train.seed == 8
    assert sheaf.load(loaded) is loaded
    with pytest.raises(RecipeError):
        sheaf.load(recipe, ["train.sede=8"])


def test_prepare_returns_a_corpus_that_can_be_opened_again(corpus: Any, recipe: Path) -> None:
    assert isinstance(corpus, sheaf.Corpus)
    assert corpus.source_names == ["a", "b"]
    assert len(corpus.documents) == 24
    again = sheaf.Corpus.open(recipe.parent / "workspace")
    assert (again.digest, again.fingerprint) == (corpus.digest, corpus.fingerprint)


def test_a_loader_gives_each_rank_its_part_of_the_same_steps(corpus: Any) -> None:
    def steps(world: int) -> list[tuple[str, int, list[bytes]]]:
        ranks = [iter(corpus.loader(sequence_length=32, batch=6, rank=r, world=world)) for r in range(world)]
        found: list[tuple[str, int, list[bytes]]] = []
        for _ in range(5):
            parts = [next(rank) for rank in ranks]
            rows = sorted(row.tobytes() for part in parts for row in part.input_ids)
            found.append((parts[0].digest, parts[0].valid_tokens, rows))
        return found

    assert steps(1) == steps(2) == steps(3)


def test_a_loader_starts_anywhere(corpus: Any) -> None:
    whole = iter(corpus.loader(sequence_length=32, batch=4))
    for _ in range(3):
        next(whole)
    later = next(iter(corpus.loader(sequence_length=32, batch=4, start=3)))
    fourth = next(whole)
    assert later.step == fourth.step == 3
    np.testing.assert_array_equal(later.input_ids, fourth.input_ids)


def test_a_mixture_is_weights_or_entries_and_a_weight_of_zero_leaves_a_source_out(corpus: Any) -> None:
    plain = corpus.loader(sequence_length=32, batch=4, mixture={"a": 1, "b": 0})
    entries = corpus.loader(sequence_length=32, batch=4, mixture={"a": MixtureEntry(), "b": MixtureEntry(weight=0.0)})
    for _, one, other in zip(range(4), plain, entries, strict=False):
        assert one.digest == other.digest
    mapping = corpus.loader(sequence_length=32, batch=4, mixture={"a": {"weight": 1, "max_epochs": 2}, "b": 0})
    assert mapping.order.entries["a"] == MixtureEntry(weight=1.0, max_epochs=2.0)
    samples = plain.order.samples(2)
    assert set(samples.source.tolist()) == {0}


def test_a_loader_packs_changes_weights_and_shares_work_as_its_arguments_say(corpus: Any) -> None:
    wanted = {"sequence_length": 32, "batch": 6, "mixture": {"a": 1, "b": 1}, "world": 2, "speeds": [2, 1]}
    curriculum = [{"at": 2, "weights": {"b": 0}}]
    for packing in ("best-fit", "concatenate", "padded"):
        ranks = [corpus.loader(packing=packing, curriculum=curriculum, rank=r, **wanted) for r in range(2)]
        order = ranks[0].order
        assert order.packing == packing and set(order.samples(2).source.tolist()) == {0}
        fast, slow = (next(iter(rank)) for rank in ranks)
        assert [len(set(batch.samples.tolist())) for batch in (fast, slow)] == [4, 2]
        assert fast.cu_seqlens[-1] == fast.input_ids.size and fast.max_seqlen <= 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": -1},
        {"mixture": {"a": {"wait": 1}}},
        {"mixture": {"a": -1}},
        {"mixture": {"a": "much"}},
        {"packing": "first-fit"},
        {"speeds": [1, 2], "rank": 0, "world": 1},
        {"mixture": {"a": 1}, "curriculum": [{"at": -1, "weights": {"a": 1}}]},
        {"mixture": {"a": 1}, "curriculum": [{"at": 3, "weights": {}}]},
    ],
)
def test_a_loaders_arguments_that_make_no_sense_are_refused(corpus: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        corpus.loader(sequence_length=32, batch=4, **wrong)


def test_a_loader_gives_tensors_to_plain_loops(corpus: Any) -> None:
    batch = next(iter(corpus.loader(sequence_length=32, batch=4).torch()))
    assert tuple(batch["input_ids"].shape) == (4, 32)
    assert batch["labels"].dtype.is_floating_point is False


def test_train_returns_a_run_that_traces_itself(recipe: Path, corpus: Any) -> None:
    run = sheaf.train(recipe)
    journal = run.journal()
    assert [entry["step"] for entry in journal] == [0, 1, 2]
    assert (run.result or {})["loss"] == journal[-1]["loss"]
    traced = run.trace(step=2)
    assert traced == sheaf.trace(run.path, step=2)
    assert {o["source"] for s in traced["samples"] for d in s["documents"] for o in d["origins"]} <= {"a", "b"}
    assert run.corpus().digest == corpus.digest
    assert run.report().is_file()
    assert isinstance("".join(run.generate("Text", max_tokens=5)), str)
    with pytest.raises(UsageError, match="Unicode"):
        next(run.generate("a\udcff", max_tokens=5))
    with pytest.raises(UsageError, match="finished"):
        sheaf.resume(run)


def test_the_newest_run_is_found_by_name_by_path_and_by_default(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sheaf.train(recipe), sheaf.train(recipe)
    monkeypatch.chdir(recipe.parent)
    assert sheaf.open_run().path == second.path
    assert sheaf.open_run(first.path.name).path == first.path
    assert sheaf.open_run(str(first.path)).path == first.path


def test_a_corpus_reports_itself_without_a_run(corpus: Any, tmp_path: Path) -> None:
    page = corpus.report(tmp_path / "corpus.html").read_text()
    assert corpus.digest[:8] in page
    assert all(name in page for name in corpus.source_names)
