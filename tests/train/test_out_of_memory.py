"""Memory that runs out: told with its numbers, and cured by shorter forward passes, which change nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from training_corpus import make_corpus, make_recipe

from control_group import memory_group
from sheaf.console import Silent
from sheaf.errors import EnvironmentProblem, OutOfMemory
from sheaf.model.memory import ran_out
from sheaf.parallel.launch import Failed
from sheaf.parallel.ranks import PeerLost, peers
from sheaf.recipe import Recipe
from sheaf.train import journal
from sheaf.train.launch import train
from sheaf.train.out_of_memory import explained, smaller
from sheaf.train.run import Run
from sheaf.train.supervise import Restarts

KILLED = Failed(0, -signal.SIGKILL, step=4, lost=(1,), out_of_memory=True)


def a_run(root: Path, ranks: int = 1, **train_fields: object) -> Run:
    recipe = make_recipe(root, **train_fields)
    return Run.open(Path(train(recipe, make_corpus(root), nproc=ranks, start_only=True, console=Silent())["run"]))


def train_with_little(recipe: Recipe, root: Path, ranks: int, kind: str, megabytes: int) -> Run:
    """In a process of its own, with threads that take little: it is the tensors that are to run out."""
    (root / "recipe.json").write_text(recipe.model_dump_json(by_alias=True))
    script = Path(__file__).with_name("limited_memory.py")
    command = [sys.executable, str(script), str(root), str(ranks), kind, str(megabytes)]
    ended = subprocess.run(
        ["bash", "-c", 'ulimit -s 2048; exec "$@"', "", *command], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Run.open(root / "runs" / "test-001")


def check_against_an_undisturbed_run(run: Run, root: Path) -> None:
    """The same samples, the same losses up to rounding, and what happened is written down."""
    calm = root / "calm"
    recipe = run.recipe.model_copy(update={"workspace": str(calm)})
    undisturbed = Path(train(recipe, make_corpus(calm), console=Silent())["run"])
    lines, expected = journal.read(run.folder), journal.read(undisturbed)
    assert [line["samples"] for line in lines] == [line["samples"] for line in expected]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=1e-5)
    assert lines[-1]["micro_samples"] < expected[-1]["micro_samples"]
    notes = (run.folder / "notes.txt").read_text()
    assert "weights 229 kB, gradients 229 kB, optimiser 291 kB, activations" in notes
    assert f"going on with {lines[-1]['micro_samples']} samples in a forward pass instead of" in notes
    assert "logits" in notes


def test_an_allocation_that_fails_is_cured_by_shorter_passes_in_a_fresh_process(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    recipe = make_recipe(
        tmp_path, batch_tokens=256 * 64, micro_batch_tokens=256 * 64, budget={"steps": 2}, checkpoint_every=1
    )
    run = train_with_little(recipe, tmp_path, 1, "data", 200)
    check_against_an_undisturbed_run(run, tmp_path)


@pytest.fixture
def group(tmp_path: Path) -> Generator[Path]:
    """tmp_path/group: a control group; its limit is the caller's."""
    with memory_group(1400 * 10**6) as made:
        (tmp_path / "group").symlink_to(made)
        yield made


@pytest.mark.soak
def test_ranks_that_the_kernel_kills_go_on_with_shorter_passes(tmp_path: Path, group: Path) -> None:
    make_corpus(tmp_path)
    tokens = 1024 * 64  # some 0.6 GB of activations a rank; launcher, forker and two ranks take 0.85 GB besides
    recipe = make_recipe(
        tmp_path, batch_tokens=2 * tokens, micro_batch_tokens=tokens, budget={"steps": 2}, checkpoint_every=1
    )
    run = train_with_little(recipe, tmp_path, 2, "group", 0)
    check_against_an_undisturbed_run(run, tmp_path)
    restarts = journal.read_lines(run.folder / "restarts.jsonl")
    assert restarts and all("was killed by the system, which had run out of memory" in one["cause"] for one in restarts)
    assert all("samples in a forward pass instead of" in one["change"] for one in restarts)


def test_after_a_kill_for_lack_of_memory_the_next_start_is_smaller_and_counts_as_no_failure(tmp_path: Path) -> None:
    run = a_run(tmp_path, 2, batch_tokens=16 * 64, micro_batch_tokens=8 * 64, restarts={"most": 1, "ranks": "fewer"})
    said: list[str] = []
    restarts = Restarts(run, 2, said.append)
    for samples in (4, 3, 2, 1):
        restarts.after(KILLED)
        assert Run.open(run.folder).settings.micro_samples(64, 2) == samples
        assert restarts.slots == [0, 1]
    assert any("activations" in text and "logits" in text for text in said)
    restarts.after(KILLED)  # with one sample it is a failure like others
    with pytest.raises(EnvironmentProblem) as raised:
        restarts.after(KILLED)
    assert "train.activation_checkpointing: full (" in raised.value.fix
    assert "train.layout: {shard: 2} (" in raised.value.fix


@pytest.mark.parametrize(
    ("fields", "step"),
    [({"out_of_memory": "stop"}, 4), ({"restarts": {"most": 0}}, 4), ({"restarts": {"most": 0}}, -1)],
)
def test_nothing_becomes_smaller_when_the_recipe_says_no_or_no_step_was_begun(
    tmp_path: Path, fields: dict[str, object], step: int
) -> None:
    run = a_run(tmp_path, 2, **fields)
    with pytest.raises(EnvironmentProblem) as raised:
        Restarts(run, 2, [].append).after(Failed(1, -signal.SIGKILL, step=step, lost=(1,), out_of_memory=True))
    assert "samples of 64 tokens in a forward pass a rank needs about weights" in raised.value.why
    assert "train.micro_batch_tokens: 128 (" in raised.value.fix
    assert Run.open(run.folder).settings == run.settings


def test_the_next_smaller_micro_batch_makes_equal_passes_of_the_same_global_batch(tmp_path: Path) -> None:
    run: Run | None = a_run(tmp_path, batch_tokens=24 * 64, micro_batch_tokens=24 * 64)
    found: list[int] = []
    while run is not None:
        found.append(run.settings.micro_samples(64, 1))
        assert run.settings.batch == 24
        run = smaller(run, 1)
    assert found == [24, 12, 8, 6, 4, 3, 2, 1]


def test_failing_allocations_of_any_kind_are_told_apart_from_other_errors(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for allocate in (lambda: torch.empty(1 << 48), lambda: np.empty(1 << 48), lambda: bytearray(1 << 60)):
        with pytest.raises(OutOfMemory, match="memory ran out") as raised, explained(run, 0, 1, in_steps=True):
            allocate()
        assert raised.value.exit_code == 4 and raised.value.in_steps
    with pytest.raises(RuntimeError, match="something else"), explained(run, 0, 1, in_steps=True):
        raise RuntimeError("something else")
    with pytest.raises(RuntimeError) as inside, peers():  # not: another rank went away
        torch.empty(1 << 48)
    assert not isinstance(inside.value, PeerLost) and ran_out(inside.value)


def test_without_memory_even_to_tell_it_is_told_that_memory_ran_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Resource temporarily unavailable")

    run = a_run(tmp_path)
    monkeypatch.setattr("sheaf.train.out_of_memory.paper_of", fails)
    with pytest.raises(OutOfMemory, match="memory ran out") as raised, explained(run, 0, 1, in_steps=True):
        raise MemoryError
    assert "not even enough left" in raised.value.why and "micro_batch_tokens" in raised.value.fix
