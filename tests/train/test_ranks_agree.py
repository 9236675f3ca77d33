"""Any number of ranks trains what one process does: same samples, same losses, also after a change of their number."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import UsageError
from sheaf.recipe import Recipe
from sheaf.train import journal
from sheaf.train.checkpoint import list_checkpoints
from sheaf.train.journal import steps_done
from sheaf.train.launch import resume, train

LAUNCHER = """
import sys
from pathlib import Path
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import SheafError
from sheaf.recipe import Recipe
from sheaf.train.launch import train
recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_bytes())
try:
    train(recipe, CorpusVersion.open(Path(recipe.workspace)), nproc=2, console=Silent())
except SheafError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def assert_equal_training(one: Path, other: Path, steps: int) -> None:
    mine, theirs = journal.read(one), journal.read(other)
    assert [line["step"] for line in theirs] == list(range(steps))
    assert [line["samples"] for line in mine] == [line["samples"] for line in theirs]
    assert [line["tokens"] for line in mine] == [line["tokens"] for line in theirs]
    assert [line["loss"] for line in theirs] == pytest.approx([line["loss"] for line in mine], rel=1e-4)


def fifty_steps(root: Path) -> Recipe:
    return make_recipe(root, budget={"steps": 50}, optimizer="muon", learning_rate=0.01, checkpoint_every=10)


def test_one_two_and_three_ranks_make_the_same_fifty_steps(tmp_path: Path) -> None:
    corpus, recipe = make_corpus(tmp_path), fifty_steps(tmp_path)
    runs = [Path(train(recipe, corpus, nproc=ranks, console=Silent())["run"]) for ranks in (1, 2, 3)]
    assert_equal_training(runs[0], runs[1], 50)
    assert_equal_training(runs[0], runs[2], 50)
    assert journal.read(runs[0])[-1]["loss"] < journal.read(runs[0])[0]["loss"] - 1
    sent = [journal.read(run)[0]["bytes_sent"] for run in runs]
    assert sent[0] == 0 and sent[1] * 4 == sent[2] * 3  # 2·(N-1)/N of the gradients


def test_stopped_by_sigterm_on_two_ranks_and_resumed_on_one_the_order_goes_on(tmp_path: Path) -> None:
    corpus, recipe = make_corpus(tmp_path), fifty_steps(tmp_path)
    calm = Path(train(recipe, corpus, console=Silent())["run"])
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json(by_alias=True))
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(path)], stderr=subprocess.PIPE)
    run = tmp_path / "runs" / "test-002"
    while steps_done(run) < 12:
        assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    message = launcher.communicate()[1].decode()
    assert launcher.returncode == 143, message
    assert f"sheaf resume {run}" in message
    assert f"there is a checkpoint of step {steps_done(run)}" in message
    assert list_checkpoints(run)[0].name == f"step-{steps_done(run):08d}"

    resume(run, nproc=1, console=Silent())
    assert_equal_training(calm, run, 50)
    assert {line["ranks"] for line in journal.read(run)} == {1, 2}


def test_more_ranks_than_samples_are_refused_before_a_run_is_made(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    with pytest.raises(UsageError, match="8 samples"):
        train(make_recipe(tmp_path), corpus, nproc=9, console=Silent())
    assert not (tmp_path / "runs").exists()
