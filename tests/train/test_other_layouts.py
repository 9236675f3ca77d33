"""A checkpoint of any layout is taken over under any other: the same tensors, bit for bit, and the same next loss."""

from __future__ import annotations

import itertools
from pathlib import Path

import orjson
import pytest
import torch
from saved_tensors import saved_tensors
from test_layouts import four_layers
from training_corpus import make_corpus

from sheaf.console import Silent
from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.parallel.mesh import size_of
from sheaf.recipe import Layout
from sheaf.train import journal
from sheaf.train.launch import resume, train

LAYOUTS = [Layout(), *(Layout.model_validate({axis: 2}) for axis in ("data", "shard", "tensor", "pipeline", "context"))]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def a_run(root: Path, layout: Layout, **settings: object) -> Path:
    """A run that made its three steps under a layout."""
    corpus, recipe = make_corpus(root), four_layers(root, budget={"steps": 3}, evaluate_every=3, **settings)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"layout": layout})})
    return Path(train(recipe, corpus, console=Silent())["run"])


def taken_over(run: Path, layout: Layout, out: Path) -> float:
    """Take the run's checkpoint over on the ranks of a layout; returns the loss of its next step."""
    out.mkdir()
    arguments = [str(run), layout.model_dump_json(), str(out)]
    ranks = size_of(layout)
    with forker("reload_rank", ["sheaf.train.trainer"], ranks) as starts:
        assert run_once(starts, arguments, ranks, out) == Ended()
    return orjson.loads((out / "loss.json").read_bytes())


def check(root: Path, start: Layout, others: list[Layout], **settings: object) -> dict[str, torch.Tensor]:
    """Returns the tensors of the checkpoint."""
    run = a_run(root, start, **settings)
    before = saved_tensors(run)
    losses = []
    for number, layout in enumerate(others):
        losses.append(taken_over(run, layout, root / str(number)))
        after = saved_tensors(root / str(number))
        assert before.keys() == after.keys()
        assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    return before


def test_a_sharded_checkpoint_is_taken_over_by_a_pipeline_and_by_tensor_ranks(tmp_path: Path) -> None:
    check(tmp_path, Layout(shard=2), [Layout(pipeline=2), Layout(tensor=2)])


def test_averages_are_taken_over_under_other_layouts_and_nothing_is_kept_of_what_is_frozen(tmp_path: Path) -> None:
    settings = {"optimizer": "schedule-free", "freeze": ["model.embed_tokens*", "model.layers.0.*"]}
    before = check(tmp_path, Layout(shard=2), [Layout(), Layout(pipeline=2)], **settings)
    kinds = {kind: {key for key in before if key.startswith(f"{kind}.")} for kind in ("weight", "y", "z", "exp_avg_sq")}
    assert sum(map(len, kinds.values())) == len(before)
    still = {key for key in kinds["weight"] if "embed_tokens" in key or ".layers.0." in key}
    assert len(kinds["weight"]) - len(still) == len(kinds["y"]) == len(kinds["z"]) == len(kinds["exp_avg_sq"]) > 0


@pytest.mark.soak
@pytest.mark.parametrize("start", LAYOUTS, ids=str)
def test_a_checkpoint_of_each_of_six_layouts_is_taken_over_under_each(tmp_path: Path, start: Layout) -> None:
    check(tmp_path, start, LAYOUTS)


def test_a_finished_plan_goes_on_under_other_layouts_as_one_run(tmp_path: Path) -> None:
    """Stopped twice, each time going on in another layout: the journal is that of an undisturbed run."""
    corpus, recipe = make_corpus(tmp_path), four_layers(tmp_path, budget={"steps": 6}, checkpoint_every=2)
    calm = Path(train(recipe, corpus, console=Silent())["run"])

    class Stops(Silent):
        def note(self, text: str) -> None:
            if "loss" in text and text.startswith("step 3/"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, corpus, console=Stops())
    run = calm.with_name("test-002")
    resume(run, layout=Layout(tensor=2), console=Silent())
    mine, theirs = journal.read(calm), journal.read(run)
    assert [line["samples"] for line in theirs] == [line["samples"] for line in mine]
    assert [line["loss"] for line in theirs] == pytest.approx([line["loss"] for line in mine], rel=1e-4)
    assert {line["ranks"] for line in theirs} == {1, 2}
    assert list(itertools.accumulate(line["valid_tokens"] for line in theirs)) == [line["tokens"] for line in theirs]
