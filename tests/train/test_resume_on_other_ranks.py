"""Killed at any step, resumed on fewer ranks, killed again, resumed on more: every step holds the samples it would have
held, exactly once. Real processes, SIGKILL."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from test_resume_exact import wait_until, write_recipe
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.train import journal
from sheaf.train.journal import steps_done
from sheaf.train.launch import train

STEPS = 24
CHILD = """
import sys
from pathlib import Path
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.recipe import Recipe
from sheaf.train.launch import resume, train
path, ranks = Path(sys.argv[1]), int(sys.argv[2])
if path.is_dir():
    resume(path, nproc=ranks, console=Silent())
else:
    recipe = Recipe.model_validate_json(path.read_bytes())
    train(recipe, CorpusVersion.open(Path(recipe.workspace)), nproc=ranks, console=Silent())
"""


def start(what: Path, ranks: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", CHILD, str(what), str(ranks)]
    return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


def kill(launcher: subprocess.Popen[bytes]) -> None:
    """The launcher and, with it, all its ranks."""
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.communicate()
    assert not psutil.wait_procs(ranks, timeout=60)[1]


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 30))]


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_on_four_ranks_resumed_on_three_then_on_five_each_step_holds_the_same_samples(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    recipe = make_recipe(tmp_path, budget={"steps": STEPS}, checkpoint_every=chance.randint(2, 5), evaluate_tokens=64)
    recipe = recipe.model_copy(update={"seed": seed})
    calm = Path(train(recipe, make_corpus(tmp_path, seed=seed), console=Silent())["run"])

    run = tmp_path / "runs" / "test-002"
    launcher = start(write_recipe(tmp_path, recipe), 4)
    for ranks, until in ((3, chance.randint(1, STEPS // 3)), (5, chance.randint(STEPS // 3 + 1, 2 * STEPS // 3))):
        wait_until(lambda until=until: steps_done(run) >= until, launcher)
        kill(launcher)
        launcher = start(run, ranks)
    message = launcher.communicate(timeout=500)[1].decode()
    assert launcher.returncode == 0, message

    mine, theirs = journal.read(calm), journal.read(run)
    for key in ("step", "samples", "tokens", "valid_tokens", "lr"):
        assert [line[key] for line in theirs] == [line[key] for line in mine]
    assert theirs[-1]["ranks"] == 5 and theirs[-1]["loss"] == pytest.approx(mine[-1]["loss"], rel=1e-3)
