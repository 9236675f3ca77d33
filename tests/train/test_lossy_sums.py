"""Runs whose gradients are summed in fewer bytes learn, their ranks stay alike, and resumed they are as undisturbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import UsageError
from sheaf.model.pieces import Piece
from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import alone
from sheaf.recipe import Layout, Recipe
from sheaf.train import journal
from sheaf.train.checkpoint import find_checkpoint
from sheaf.train.kept import restore_kept
from sheaf.train.launch import resume, train
from sheaf.train.run import Run
from sheaf.train.verify import verify

HERE = Path(__file__).parent
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {"gradients": "fp32"},
    "bf16": {"gradients": "bf16"},
    "int8": {"gradients": "int8"},
    "two-bit": {"gradients": "two-bit"},
    "powersgd": {"gradients": "powersgd", "rank": 8},
    "topk": {"gradients": "topk", "share": 0.05},
}
LOSSY = ("int8", "two-bit", "powersgd", "topk")
STEPS, SAVED = 40, 16


@dataclass
class Trained:
    """Two runs of a way: to the end, and again from a checkpoint on."""

    losses: list[float]
    tensors: dict[str, torch.Tensor]
    lines: list[dict[str, Any]]
    again: list[float]
    tensors_again: dict[str, torch.Tensor]
    buckets: dict[str, Any]


def recipe_of(root: Path, way: str, **train: object) -> Recipe:
    usual = {"budget": {"steps": STEPS}, "learning_rate": 0.01, "optimizer": "adamw", "checkpoint_every": SAVED}
    usual["balance"] = "even"  # what was measured is no part of a checkpoint, and another split sums in another order
    return make_recipe(root, **{**usual, "communication": WAYS[way], **train})


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in journal.read(run)]


def tensors(run: Path, step: int, kinds: tuple[str, ...] = ("weight", "kept", "basis")) -> dict[str, torch.Tensor]:
    checkpoint = find_checkpoint(run, step)
    shapes = {key: tuple(told["shape"]) for key, told in checkpoint.manifest["tensors"].items()}
    return {k: checkpoint.read(k, Piece.whole(s)) for k, s in shapes.items() if k.startswith(kinds)}


def go_back_to(run: Path, step: int) -> None:
    """As if the run had been killed after the checkpoint of this step."""
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    Run.open(run).updated(result=None)


@pytest.fixture(autouse=True, scope="module")
def surroundings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(HERE)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """By way, trained on two ranks."""
    root = tmp_path_factory.mktemp("runs")
    corpus = make_corpus(root)
    runs = {
        way: Path(train(recipe_of(root, way), corpus, nproc=2, start_only=True, console=Silent())["run"])
        for way in WAYS
    }
    words = [str(run) for run in runs.values()]
    with forker("runs_rank", ("sheaf.train.trainer", "torch._inductor"), 2) as starts:
        assert run_once(starts, words, 2, root) == Ended()
        first = {way: (losses(run), tensors(run, STEPS), journal.read(run)) for way, run in runs.items()}
        for run in runs.values():
            go_back_to(run, SAVED)
        assert run_once(starts, words, 2, root) == Ended()
    return {
        way: Trained(*first[way], losses(run), tensors(run, STEPS), find_checkpoint(run, STEPS).manifest["buckets"])
        for way, run in runs.items()
    }


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(trained: dict[str, Trained], way: str) -> None:
    one = trained[way]
    assert one.again == one.losses
    assert one.tensors.keys() == one.tensors_again.keys()
    assert all(torch.equal(value, one.tensors_again[key]) for key, value in one.tensors.items())


def test_buckets_are_measured_once_and_lie_in_the_order_in_which_gradients_arrive(trained: dict[str, Trained]) -> None:
    for one in trained.values():
        assert one.buckets["bytes"] in {2**20 * 2**n for n in range(7)}
        order = one.buckets["order"]
        assert order[0] == "model.norm.weight" and order[-1] == "model.embed_tokens.weight"
        assert len(order) == len({key.partition(".")[2] for key in one.tensors if key.startswith("weight.")})


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_has_what_each_rank_kept_where_a_way_keeps_something(
    trained: dict[str, Trained], way: str
) -> None:
    kept = {key: value for key, value in trained[way].tensors.items() if key.startswith("kept-")}
    assert {key.partition(".")[0] for key in kept} == ({"kept-0", "kept-1"} if way in LOSSY else set())
    assert all(value.any() for key, value in kept.items() if "mlp" in key)
    assert any(key.startswith("basis-0") for key in trained[way].tensors) == (way == "powersgd")


def test_each_way_sends_less_and_learns_with_what_it_keeps(trained: dict[str, Trained]) -> None:
    """So short a run punishes what is sent late; docs/communication.md has longer ones."""

    def last(way: str) -> float:
        return sum(trained[way].losses[-5:]) / 5

    exact, sent = last("fp32"), trained["fp32"].lines[-1]["bytes_sent"]
    assert exact < trained["fp32"].losses[0] - 2
    for way, most, far in (
        ("bf16", 0.51, 1.01),
        ("int8", 0.28, 1.02),
        ("two-bit", 0.08, 1.1),
        ("powersgd", 0.3, 1.1),
        ("topk", 0.12, 1.3),
    ):
        assert last(way) < exact * far, way
        assert trained[way].lines[-1]["bytes_sent"] < most * sent, way


def test_on_other_ranks_the_sum_of_what_was_kept_goes_on(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = recipe_of(tmp_path, "topk", budget={"steps": 6}, checkpoint_every=2, keep=9)
    run = Path(train(recipe, corpus, nproc=2, console=Silent())["run"])
    go_back_to(run, 4)
    resume(run, nproc=3, console=Silent())
    assert [line["ranks"] for line in journal.read(run)] == [2, 2, 2, 2, 3, 3]
    (checkpoint, kept) = find_checkpoint(run, 4), tensors(run, 4, ("kept",))
    spread = Spread(checkpoint.config, torch.float32, Mesh(alone(), Layout()), How(), checkpoint.values())
    restore_kept(spread, checkpoint)
    for name, parameter in spread.parameters().items():
        assert parameter.grad is not None and parameter.grad.any()
        torch.testing.assert_close(parameter.grad, kept[f"kept-0.{name}"] + kept[f"kept-1.{name}"])


def test_lossy_sums_of_sharded_matrices_are_refused_before_a_run_is_made(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    with pytest.raises(UsageError, match="cannot be spread") as raised:
        train(recipe_of(tmp_path, "int8", layout={"shard": 2}), corpus, console=Silent())
    assert "sharded matrices" in raised.value.why and "data: 2" in raised.value.fix


def test_verify_allows_bf16_sums_their_rounding_and_says_that_lossy_ones_are_not_compared(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    notes: list[str] = []
    console = Silent()
    console.note = notes.append  # type: ignore[method-assign]
    (rounded,) = verify(recipe_of(tmp_path, "bf16"), corpus, [Layout(data=2)], steps=1, console=console)
    assert rounded.holds and 1e-5 < rounded.gradient.error < 1e-2
    (exact,) = verify(recipe_of(tmp_path, "topk"), corpus, [Layout(data=2)], steps=1, console=console)
    assert exact.holds and exact.gradient.error < 1e-5
    assert sum("topk gradients are lossy" in note for note in notes) == 1
