"""Spikes: who judges, what is skipped, and that going back arrives where a run arrives that never made the updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from published import rewound
from saved_tensors import saved_tensors
from spiking_rank import FACTOR, plant
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import TrainingFailed
from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.parallel.parallelize import Spread
from sheaf.parallel.ranks import Ranks, alone
from sheaf.recipe import Layout
from sheaf.train import journal, spikes
from sheaf.train.launch import resume, train
from sheaf.train.learner import Learner
from sheaf.train.run import Run
from sheaf.train.spikes import RollBack, SpikeGuard


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def judged(guard: SpikeGuard, losses: list[float], start: int = 0) -> list[bool]:
    return [guard.passes(start + n, loss, 1.0 + 0.01 * (n % 3), alone()) for n, loss in enumerate(losses)]


def steady(number: int) -> list[float]:
    return [4.0 + 0.1 * math.sin(n) for n in range(number)]


def test_a_jump_is_skipped_and_a_level_that_stays_becomes_normal() -> None:
    guard = SpikeGuard("skip")
    assert all(judged(guard, steady(100)))
    assert judged(guard, [9.0]) == [False]
    assert judged(guard, [4.0]) == [True]
    assert guard.passes(0, 4.0, 50.0, alone()) is False  # the norm alone
    assert not all(judged(guard, [9.0] * 3)) and all(judged(guard, [9.0] * 200)[-100:])


def test_nothing_is_judged_before_there_is_a_history() -> None:
    assert all(judged(SpikeGuard("skip"), [*steady(60), 50.0]))


def test_what_is_not_finite_is_skipped_some_times_and_then_told() -> None:
    guard = SpikeGuard("skip")
    assert judged(guard, [math.nan] * 8) == [False] * 8
    assert judged(guard, [math.nan]) == [True]  # the learner raises then


def test_a_restored_guard_judges_the_same() -> None:
    one, two = SpikeGuard("skip"), SpikeGuard("skip")
    judged(one, steady(80))
    two.load(one.state())
    more = [4.0, 4.7, 4.65, 9.0, 4.1, math.inf, 4.0]
    assert judged(one, more) == judged(two, more) and one.state() == two.state()


def test_every_rank_does_what_rank_0_judges() -> None:
    class Second(Ranks):
        """Rank 1 of two, where rank 0 has found a spike."""

        def from_first(self, values: Sequence[float]) -> list[float]:
            return [1.0] * len(values)

    guard, ranks = SpikeGuard("skip"), Second(1, 2, torch.device("cpu"))
    assert [guard.passes(n, loss, 1.0, ranks) for n, loss in enumerate(steady(3))] == [False] * 3


def test_off_is_off() -> None:
    assert all(judged(SpikeGuard(), [*steady(100), 1e9, math.nan]))


@pytest.fixture
def spiking(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """step → factor on its loss: a planted spike. The history that is needed is made short."""
    planted: dict[int, float] = {}
    for owner, name in ((Learner, "step"), (Spread, "_loss"), (spikes, "LEAST")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be put back
    plant(planted)
    return planted


def test_a_skipped_step_makes_no_update_and_is_counted(tmp_path: Path, spiking: dict[int, float]) -> None:
    corpus = make_corpus(tmp_path)
    spiking[14] = 30.0
    result = train(make_recipe(tmp_path, spikes="skip", checkpoint_every=10), corpus, console=Silent())
    run = Path(result["run"])
    assert [line["step"] for line in journal.read(run) if line["skipped"]] == [14] and result["skipped_steps"] == 1
    again = rewound(run, run.with_name("test-101"), 10)  # the history is in the checkpoint
    resume(again, console=Silent())
    assert [line["loss"] for line in journal.read(again)] == [line["loss"] for line in journal.read(run)]
    one, two = saved_tensors(run), saved_tensors(again)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_going_back_arrives_where_the_updates_were_never_made(tmp_path: Path, spiking: dict[int, float]) -> None:
    corpus = make_corpus(tmp_path)
    spiking[18] = 30.0
    notes: list[str] = []

    class Noted(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    recipe = make_recipe(tmp_path, spikes="rollback", checkpoint_every=5, budget={"steps": 24})
    run = Path(train(recipe, corpus, console=Noted())["run"])
    lines = journal.read(run)
    assert [line["step"] for line in lines] == list(range(24))
    assert [line["step"] for line in lines if line["skipped"]] == Run.open(run).avoided == list(range(10, 19))
    assert any("step 18 is a spike" in note for note in notes) and any("after step 10" in note for note in notes)
    # Stopped anywhere and resumed, also where a checkpoint has seen what is left out: the same bits.
    first = saved_tensors(run)
    for number, step in ((101, 10), (102, 15)):
        again = rewound(run, run.with_name(f"test-{number}"), step)  # forgets what was avoided
        resume(again, console=Silent())
        assert Run.open(again).avoided == list(range(10, 19))
        assert all(torch.equal(first[name], tensor) for name, tensor in saved_tensors(again).items())


def test_all_ranks_of_a_layout_go_back_before_a_spike_together(tmp_path: Path, spiking: dict[int, float]) -> None:
    corpus, spiking[12] = make_corpus(tmp_path), FACTOR
    recipe = make_recipe(tmp_path, spikes="rollback", budget={"steps": 14}, checkpoint_every=4, layout={"shard": 2})
    started = train(recipe, corpus, start_only=True, console=Silent())
    run = Path(started["run"])
    with forker("spiking_rank", ["sheaf.train.trainer"], 2) as starts:
        assert run_once(starts, [str(run), "12"], 2, tmp_path) == Ended()
    alone = recipe.model_copy(update={"train": recipe.train.model_copy(update={"layout": Layout()})})
    lines, theirs = (journal.read(r) for r in (run, Path(train(alone, corpus, console=Silent())["run"])))
    assert [line["step"] for line in lines if line["skipped"]] == Run.open(run).avoided == list(range(4, 13))
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    assert len(lines) == 14 and lines[12]["loss"] > FACTOR


def test_spikes_without_end_stop_the_run(tmp_path: Path) -> None:
    run = Path(train(make_recipe(tmp_path, budget={"steps": 1}), make_corpus(tmp_path), console=Silent())["run"])
    opened = Run.open(run).updated(avoided=list(range(90)))
    with pytest.raises(TrainingFailed, match="again and again"):
        spikes.rolled_back(opened, RollBack(200, "its loss is 9"), alone())
