"""A run whose ranks and launcher are killed, over and over, ends as one that nobody touched."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_ranks_ends import all_of, ranks_of
from test_resume_exact import start, write_recipe
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.recipe import Recipe
from sheaf.train import journal
from sheaf.train.journal import read_lines, steps_done
from sheaf.train.launch import resume, train
from sheaf.train.run import Run


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def assert_undisturbed(calm: Path, run: Path, steps: int) -> None:
    mine, theirs = journal.read(calm), journal.read(run)
    assert [line["step"] for line in theirs] == list(range(steps))
    for key in ("samples", "tokens", "valid_tokens", "lr"):
        assert [line[key] for line in theirs] == [line[key] for line in mine]
    assert theirs[-1]["loss"] == pytest.approx(mine[-1]["loss"], abs=1e-3)
    assert Run.open(run).result is not None


def until(come: Callable[[], bool], launcher: subprocess.Popen[bytes]) -> None:
    while not come():
        assert launcher.poll() is None, launcher.communicate()[1].decode()
        time.sleep(0.02)  # polling, not synchronisation: the kill may come at any moment


def kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launcher alone: everything that it started goes with it."""
    started = all_of(launcher.pid)
    launcher.kill()
    launcher.communicate()
    assert not psutil.wait_procs(started, timeout=30)[1]


class KillsTheFirstRank(Silent):
    """At the first note of a step from `step` on: the rank that writes the files."""

    def __init__(self, step: int) -> None:
        self.step, self.killed = step, False

    def note(self, text: str) -> None:
        if not self.killed and text.startswith("step ") and int(text.split("/")[0].removeprefix("step ")) >= self.step:
            self.killed = True
            os.kill(ranks_of(os.getpid())[0].pid, signal.SIGKILL)


def recipe_of(root: Path, steps: int, rate: float | None = None, **restarts: object) -> Recipe:
    often = {"checkpoint_every": 10, "evaluate_every": 70}
    return make_recipe(root, budget={"steps": steps}, learning_rate=rate, **often, restarts=restarts)


def test_ranks_and_launcher_killed_and_fewer_ranks_each_time_every_step_is_there_once(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, 150, ranks="fewer")
    calm = Path(train(recipe, make_corpus(tmp_path), console=Silent())["run"])
    run = tmp_path / "runs" / "test-002"

    launcher = start("train", write_recipe(tmp_path, recipe), 3)
    until(lambda: steps_done(run) >= 25, launcher)
    os.kill(ranks_of(launcher.pid)[-1].pid, signal.SIGKILL)  # its launcher goes on with two
    until(lambda: steps_done(run) >= 65, launcher)
    kill_all(launcher)
    result = resume(run, console=KillsTheFirstRank(105))

    assert_undisturbed(calm, run, 150)
    ranks_used = [line["ranks"] for line in journal.read(run)]
    assert sorted(ranks_used, reverse=True) == ranks_used and set(ranks_used) == {3, 2, 1}
    restarts = read_lines(run / "restarts.jsonl")
    assert [line["ranks"] for line in restarts] == [2, 1]
    assert all(line["from_step"] % 10 == 0 and 0 <= line["step"] - line["from_step"] <= 20 for line in restarts)
    assert result["restarts"] == 2 and result["lost_seconds"] > 0


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_fifty_kills_at_random_moments_and_restarts_with_two_to_four_ranks(tmp_path: Path) -> None:
    """Half of them kill the whole job, which is resumed on another number of ranks; half kill one rank. Half come some
    steps later, half some seconds later: in a start, a checkpoint, a restart."""
    chance = random.Random(11)
    # Other numbers of ranks round their sums otherwise. At the default rate that grew to 0.03 of loss in 700 steps; a
    # tenth of it keeps the runs together.
    recipe = recipe_of(tmp_path, 1200, rate=5e-4, most=50)
    calm = Path(train(recipe, make_corpus(tmp_path), console=Silent())["run"])
    run = tmp_path / "runs" / "test-002"
    launcher = start("train", write_recipe(tmp_path, recipe), 3)
    until(lambda: (run / "run.json").exists(), launcher)
    for kills in range(1, 51):
        if chance.random() < 0.5:
            wanted = steps_done(run) + chance.randrange(1, 60)
            until(lambda wanted=wanted: steps_done(run) >= wanted, launcher)
        else:
            time.sleep(chance.uniform(0.0, 8.0))
        assert launcher.poll() is None, "the run ended before it was killed so often"
        ranks = ranks_of(launcher.pid)
        sys.stderr.write(f"kill {kills} after {steps_done(run)} steps, {len(ranks)} ranks\n")
        if ranks and chance.random() < 0.5:
            os.kill(chance.choice(ranks).pid, signal.SIGKILL)
        else:
            kill_all(launcher)
            launcher = start("resume", run, chance.choice([2, 3, 4]))
    assert launcher.wait() == 0, launcher.communicate()[1].decode()
    assert_undisturbed(calm, run, 1200)
    assert {line["ranks"] for line in journal.read(run)} == {2, 3, 4}
