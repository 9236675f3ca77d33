"""Whoever forgets is told which runs, steps and checkpoints have seen it, also of older versions of the corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from sheaf import api, recipe_file
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import SheafError
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe
from sheaf.train import launch
from sheaf.train.trace import trace_item

TEXT = """
name: exposed
sources: [{name: files, uri: ./files}]
prepare: {tokenizer: {train: bpe, vocab_size: 300}}
model: {hidden_size: 32, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 64}
train:
  sequence_length: 64
  batch_tokens: 256
  budget: {steps: 12}
  checkpoint_every: 3
  keep: 10
  held_out: 0
  precision: fp32
  compile: "off"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe and a run; afterwards a file has changed, so that the run's version is not the newest."""
    base = tmp_path_factory.mktemp("exposed")
    (base / "files").mkdir()
    for n in range(60):
        lines = (f"In report {n} paragraph {k} speaks of the harvest of {1900 + n * 7 + k}." for k in range(12))
        (base / f"files/{n}.txt").write_text("\n".join(lines))
    recipe = recipe_file.loads(TEXT, base)
    prepare(recipe, workers=1)
    run = launch.train(recipe, CorpusVersion.open(recipe.workspace), nproc=1, console=Silent())["run"]
    (base / "files/59.txt").write_text("Another report took this one's place after the training had ended.")
    prepare(recipe, workers=1)
    return recipe, Path(run)


def ranges(steps: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for step in sorted(set(steps)):
        if found and found[-1][1] == step - 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return found


def test_the_runs_that_saw_it_are_named_with_their_steps_and_checkpoints(trained: tuple[Recipe, Path]) -> None:
    recipe, run = trained
    traced = trace_item(run, "/7.txt")
    steps = [use["step"] for use in traced["uses"]]
    assert steps
    told = api.forget(recipe, item="/7.txt")
    assert told["runs"] == [
        {
            "run": run.name,
            "uses": len(steps),
            "first_step": min(steps),
            "last_step": max(steps),
            "steps": ranges(steps),
            "checkpoints": traced["checkpoints"],
        }
    ]


def test_a_run_that_saw_an_item_before_it_changed_is_named_too(trained: tuple[Recipe, Path]) -> None:
    recipe, run = trained
    steps = [use["step"] for use in trace_item(run, "/59.txt")["uses"]]
    assert steps
    (told,) = api.forget(recipe, item="/59.txt")["runs"]
    assert (told["uses"], told["first_step"]) == (len(steps), min(steps))


def test_no_run_is_named_for_what_none_has_seen(trained: tuple[Recipe, Path]) -> None:
    recipe, _ = trained
    new = Path(recipe.sources[0].uri) / "new.txt"
    new.write_text("This one came after all the training, so that no run can have seen anything of it.")
    prepare(recipe, workers=1)
    assert api.forget(recipe, item="new.txt")["runs"] == []


def test_a_run_whose_version_was_purged_still_speaks_and_is_exported(
    trained: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, run = trained
    before = "".join(api.open_run(run).generate("In report 3", max_tokens=8))
    told = api.forget(recipe, item="/3.txt", yes=True, purge=True, workers=1)
    assert told["purged"]["versions"] and told["purged"]["tokenizer"]  # it was trained on what is gone
    assert "".join(api.open_run(run).generate("In report 3", max_tokens=8)) == before
    assert (api.open_run(run).export(tmp_path / "model") / "tokenizer.json").exists()
    with pytest.raises(SheafError, match="no longer has this version"):
        api.open_run(run).trace(step=0)
