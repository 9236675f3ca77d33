"""A run that is killed and resumed computes what an undisturbed one does, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import Interrupted, UsageError
from sheaf.recipe import Recipe
from sheaf.train import journal
from sheaf.train.checkpoint import list_checkpoints, newest_valid
from sheaf.train.journal import steps_done
from sheaf.train.launch import resume, train
from sheaf.train.run import Run

HERE = Path(__file__).parent
NUMBERS = ("step", "loss", "tokens", "samples", "lr", "grad_norm", "valid_tokens", "padding")
CHILD = """
import sys
from pathlib import Path
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.recipe import Recipe
from sheaf.train.launch import resume, train
if sys.argv[1] == "train":
    recipe = Recipe.model_validate_json(Path(sys.argv[2]).read_bytes())
    train(recipe, CorpusVersion.open(Path(recipe.workspace)), nproc=int(sys.argv[3]), console=Silent())
else:
    resume(Path(sys.argv[2]), nproc=int(sys.argv[3]) if sys.argv[3:] else None, console=Silent())
"""


def start(*arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)


def wait_until(come: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not come():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.001)  # polling, not synchronisation: the kill may come at any moment


def is_saving(run: Path, after: int) -> bool:
    """A checkpoint is being written, and at least `after` steps are done."""
    return any((run / "checkpoints").glob(".step-*")) and steps_done(run) >= after


def numbers(run: Path) -> list[dict[str, object]]:
    return [{key: line[key] for key in NUMBERS} for line in journal.read(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_valid(run)
    assert checkpoint is not None
    return {
        **load_file(checkpoint.path / "model-0000.safetensors"),
        **load_file(checkpoint.path / "optimizer-0000.safetensors"),
    }


def assert_same(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor.view(torch.int32), theirs[name].view(torch.int32)), name
    plain = [{k: v for k, v in line.items() if k != "seconds"} for line in journal.read_evaluations(one)]
    assert plain == [{k: v for k, v in line.items() if k != "seconds"} for line in journal.read_evaluations(other)]


def write_recipe(folder: Path, recipe: Recipe) -> Path:
    path = folder / "recipe.json"
    path.write_text(recipe.model_dump_json(by_alias=True))
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_killed_at_many_moments_a_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Muon, bf16, evaluations and checkpoints in between; among the moments are some while a checkpoint is written."""
    settings = {"budget": {"steps": 60}, "precision": "bf16", "optimizer": "muon", "learning_rate": 0.01}
    settings |= {"checkpoint_every": 3, "evaluate_every": 7}
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, **settings)
    calm = Path(train(recipe, corpus, console=Silent())["run"])

    run = tmp_path / "runs" / "test-002"
    process = start("train", write_recipe(tmp_path, recipe), 1)
    moments = (lambda: steps_done(run) >= 1, lambda: is_saving(run, 20), lambda: steps_done(run) >= 46)
    for come in moments:
        wait_until(come, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start("resume", run)
    assert process.wait() == 0, process.stderr.read().decode()
    assert_same(calm, run)


def test_killed_while_a_checkpoint_is_being_written_it_takes_the_one_before(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 12}, checkpoint_every=4, keep=9)
    calm = Path(train(recipe, corpus, console=Silent())["run"])
    run = unfinished_copy(calm)
    torn = run / "checkpoints" / "step-00000012"
    torn.rename(torn.with_name(".step-00000012"))  # as a kill before the last rename leaves it
    (torn.with_name(".step-00000012") / "COMMITTED").unlink()

    resume(run, console=Silent())
    assert_same(calm, run)
    assert not list((run / "checkpoints").glob(".*"))


def test_a_damaged_checkpoint_is_passed_over_with_a_note(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 12}, checkpoint_every=4)
    calm = Path(train(recipe, corpus, console=Silent())["run"])
    run = unfinished_copy(calm)
    damaged = run / "checkpoints" / "step-00000012" / "model-0000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    resume(run, console=Silent())
    assert_same(calm, run)
    notes = (run / "notes.txt").read_text()
    assert (run / "checkpoints" / ".damaged-step-00000012").is_dir()
    assert "step-00000012 is damaged" in notes and "from step-00000008" in notes


def test_sigterm_ends_with_a_checkpoint_of_the_last_step(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 40}, checkpoint_every=40)
    calm = Path(train(recipe, corpus, console=Silent())["run"])

    class TermAtStep(Silent):
        def note(self, text: str) -> None:
            if text.startswith("step 10/40"):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM") as raised:
        train(recipe, corpus, console=TermAtStep())
    assert raised.value.exit_code == 143
    run = tmp_path / "runs" / "test-002"
    assert list_checkpoints(run)[0].name == f"step-{steps_done(run):08d}"
    assert 10 <= steps_done(run) < 40

    resume(run, console=Silent())
    assert_same(calm, run)


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    result = train(make_recipe(tmp_path, budget={"steps": 2}), make_corpus(tmp_path), console=Silent())
    with pytest.raises(UsageError, match="finished"):
        resume(Path(result["run"]), console=Silent())


def test_compiled_training_is_exact_after_a_resume_too(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 8}, checkpoint_every=4, compile="on", precision="bf16")
    calm = Path(train(recipe, corpus, console=Silent())["run"])
    run = unfinished_copy(calm)
    (run / "checkpoints" / "step-00000008" / "COMMITTED").unlink()
    process = start("resume", run)
    assert process.wait() == 0, process.stderr.read().decode()
    assert_same(calm, run)


def unfinished_copy(run: Path) -> Path:
    """A copy of a finished run, as if the process had been killed just before it wrote the result."""
    copy = run.with_name("test-002")
    shutil.copytree(run, copy)
    Run.open(copy).updated(result=None)
    return copy
