"""Optimiser state in host memory: the same updates, from checkpoints of either kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.order.loader import Loader
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import Ranks
from sheaf.recipe import Layout
from sheaf.train.launch import train
from sheaf.train.learner import Learner
from sheaf.train.optimizer import Kind, Update
from sheaf.train.plan import new_values
from sheaf.train.setup import exact, order_of


def losses(root: Path, device: str, optimizer: Kind, *, offload: bool) -> tuple[list[float], Learner]:
    recipe, corpus = make_recipe(root, optimizer=optimizer), make_corpus(root)
    plan, values = new_values(recipe, corpus)
    found: list[float] = []
    with exact(2):
        mesh = Mesh(Ranks(0, 1, torch.device(device)), Layout())
        spread = Spread(plan.config, torch.float32, mesh, How(), values)
        update = Update(optimizer, 0.1, (0.9, 0.95), "fp32")
        learner = Learner(spread, update, 1.0, micro_samples=4, offload=offload)
        with Loader(order_of(recipe, corpus, "train"), corpus.token_files(), stop=4) as loader:
            for step, batch in enumerate(loader):
                found.append(learner.step(batch, 1e-2).loss)
                if step == 1:  # as after a probe of the speed
                    spread.fill(values)
                    learner.reset_optimizer()
    return found, learner


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_updates_on_copies_are_the_updates_bit_for_bit(tmp_path: Path, optimizer: Kind) -> None:
    expected, beside = losses(tmp_path, "cpu", optimizer, offload=False)
    found, learner = losses(tmp_path, "cpu", optimizer, offload=True)
    assert found == expected
    state, wanted = learner.state(), beside.state()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name][1]) for name, (_, tensor) in state.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: what is offloaded lies there otherwise")
def test_on_a_gpu_state_lies_in_host_memory_and_losses_are_the_same(tmp_path: Path) -> None:
    expected, _ = losses(tmp_path, "cuda", "adamw", offload=False)
    found, learner = losses(tmp_path, "cuda", "adamw", offload=True)
    assert found == pytest.approx(expected, rel=1e-5)
    assert {tensor.device.type for tensor in learner.optimizer.state().values()} == {"cpu"}
    assert {tensor.device.type for tensor in learner.spread.held().values()} == {"cuda"}


def test_without_a_gpu_a_run_says_that_it_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = make_recipe(tmp_path, budget={"steps": 1}, offload_optimizer=True)
    run = Path(train(recipe, make_corpus(tmp_path), console=Silent())["run"])
    assert "train.offload_optimizer changes nothing: without a GPU" in (run / "notes.txt").read_text()
