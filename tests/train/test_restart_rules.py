"""After which failures the ranks are started again, and how many of them."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import orjson
import pytest
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import EnvironmentProblem, SheafError, TrainingFailed
from sheaf.parallel.launch import Failed
from sheaf.parallel.pulse import Phase
from sheaf.parallel.stuck import STATES, Stuck
from sheaf.processes import StopSignals
from sheaf.recipe import Layout
from sheaf.train import journal
from sheaf.train.launch import train
from sheaf.train.run import Run
from sheaf.train.supervise import Restarts, summary

KILLED = Failed(1, -signal.SIGKILL, step=4, lost=(1,))
NOTHING_TO_SAY = {"where": "", "why": "", "fix": ""}
CRASHED = Failed(0, 1, step=4, words={"kind": "", "code": 1, "what": "OSError: [Errno 5] it broke", **NOTHING_TO_SAY})


def a_run(root: Path, **restarts: object) -> Run:
    folder = root / "runs" / "test-001"
    (folder / "checkpoints").mkdir(parents=True)
    recipe = orjson.loads(make_recipe(root, restarts=restarts).model_dump_json(by_alias=True))
    whole = {"corpus": "", "order": {}, "settings": {}, "result": None, "name": "test-001", "started": ""}
    return Run(folder, {}).updated(format=1, recipe=recipe, ranks=3, **whole)


def a_made_run(root: Path, **train_fields: object) -> Run:
    """A run of three ranks, or as many as its layout has, that has a corpus and has not begun."""
    recipe = make_recipe(root, restarts={"ranks": "fewer"}, **train_fields)
    ranks = None if "layout" in train_fields else 3
    return Run.open(Path(train(recipe, make_corpus(root), nproc=ranks, start_only=True, console=Silent())["run"]))


def restarts_of(run: Run, said: list[str] | None = None) -> Restarts:
    return Restarts(run, 3, (said if said is not None else []).append)


def commit(run: Run, step: int) -> None:
    folder = run.folder / "checkpoints" / f"step-{step:08d}"
    folder.mkdir()
    (folder / "COMMITTED").touch()


def test_what_somebody_names_ends_the_run_with_that_error_at_once(tmp_path: Path) -> None:
    words = {"kind": "TrainingFailed", "code": 1, "what": "it diverged", **NOTHING_TO_SAY, "where": "step 4"}
    with pytest.raises(TrainingFailed, match="it diverged") as raised:
        restarts_of(a_run(tmp_path)).after(Failed(2, 1, step=4, words=words))
    assert raised.value.where == "step 4"


@pytest.mark.parametrize(
    "failed",
    [
        CRASHED,
        Failed(1, -signal.SIGSEGV, step=4),
        Failed(1, 7),
        Failed(1, 0, step=4, stuck=(Stuck(1, Phase.STEP, 4, 61.0, False, STATES["D"], "", ""),)),
    ],
)
def test_the_same_failure_twice_at_one_step_ends_the_run(tmp_path: Path, failed: Failed) -> None:
    restarts = restarts_of(a_run(tmp_path))
    restarts.after(failed)
    with pytest.raises(EnvironmentProblem, match="so the run has stopped") as raised:
        restarts.after(failed)
    assert "it happened twice, both times after" in raised.value.why


def test_failures_at_other_steps_or_from_outside_are_no_repetition(tmp_path: Path) -> None:
    restarts = restarts_of(a_run(tmp_path, most=9))
    for failed in (CRASHED, Failed(0, 1, step=5, words=CRASHED.words), KILLED, KILLED, KILLED, CRASHED):
        restarts.after(failed)


def test_so_many_restarts_without_a_new_checkpoint_are_enough_and_one_begins_the_count_anew(tmp_path: Path) -> None:
    run = a_run(tmp_path, most=2)
    restarts = restarts_of(run)
    for _ in range(2):
        restarts.after(KILLED)
        restarts.close()
    commit(run, 8)
    for _ in range(2):
        restarts.after(KILLED)
        restarts.close()
    with pytest.raises(EnvironmentProblem, match="rank 1 died") as raised:
        restarts.after(KILLED)
    assert "killed by SIGKILL; 2 restarts from the same checkpoint did not help" in raised.value.why
    assert summary(run.folder)["restarts"] == 4


def test_told_so_it_goes_on_with_the_ranks_that_are_left_and_their_devices(tmp_path: Path) -> None:
    run = a_made_run(tmp_path)
    restarts = restarts_of(run)
    restarts.after(KILLED)
    assert restarts.slots == [0, 2]
    assert Run.open(run.folder).ranks == 2  # what `sheaf resume` will take
    assert Run.open(run.folder).layout is None  # they will choose
    restarts.after(KILLED)
    assert restarts.slots == [0]
    restarts.after(Failed(0, -signal.SIGKILL, lost=(0,)))
    assert restarts.slots == [0]


def test_a_layout_that_cannot_be_had_on_the_ranks_left_goes_on_with_all(tmp_path: Path) -> None:
    said: list[str] = []
    run = a_made_run(tmp_path, layout={"shard": 3})
    restarts = restarts_of(run, said)
    restarts.after(KILLED)
    assert restarts.slots == [0, 1, 2]
    assert (Run.open(run.folder).ranks, Run.open(run.folder).layout) == (3, Layout(shard=3))
    assert any("the recipe's layout cannot be had on 2 ranks" in text for text in said)


def test_data_parallel_that_the_recipe_leaves_open_shrinks_around_the_axes_it_names(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, layout={"shard": 2}, restarts={"ranks": "fewer"})
    run = Run.open(Path(train(recipe, make_corpus(tmp_path), nproc=4, start_only=True, console=Silent())["run"]))
    restarts = Restarts(run, 4, [].append)
    restarts.after(Failed(1, -signal.SIGKILL, step=4, lost=(1, 3)))
    assert restarts.slots == [0, 2]
    assert Run.open(run.folder).layout == Layout(data=1, shard=2)


@pytest.mark.parametrize("kind", ["PeerLost", "RanksDiffer"])
def test_a_failure_that_is_nobodys_leaves_no_rank_out_and_may_pass(tmp_path: Path, kind: str) -> None:
    restarts = restarts_of(a_run(tmp_path, ranks="fewer"))
    failed = Failed(0, 4, step=4, words={"kind": kind, "code": 4, "what": "together no longer", **NOTHING_TO_SAY})
    restarts.after(failed)
    assert restarts.slots == [0, 1, 2]
    with pytest.raises(EnvironmentProblem, match="stopped") as raised:
        restarts.after(failed)
    assert "rank 0 failed: together no longer; it happened twice" in raised.value.why


def test_otherwise_as_many_are_started_again(tmp_path: Path) -> None:
    restarts = restarts_of(a_run(tmp_path))
    restarts.after(KILLED)
    assert restarts.slots == [0, 1, 2]


def test_a_restart_leaves_a_line_that_says_why_from_where_and_what_it_took(tmp_path: Path) -> None:
    said: list[str] = []
    run = a_run(tmp_path)
    restarts = restarts_of(run, said)
    (run.folder / journal.STEPS).write_bytes(b"".join(b'{"step":%d,"seconds":0.5}\n' % step for step in range(6)))
    restarts.after(KILLED)
    restarts.moved(4)
    (line,) = journal.read_lines(run.folder / "restarts.jsonl")
    assert line["cause"] == "rank 1 was killed by SIGKILL"
    assert (line["step"], line["from_step"], line["ranks"], line["again_seconds"]) == (6, 4, 3, 1.0)
    assert summary(run.folder)["lost_seconds"] == pytest.approx(1.0 + line["down_seconds"])
    assert any("rank 1 was killed by SIGKILL after 6 steps; starting again" in text for text in said)
    assert any("2 steps (1.0 s) are made again" in text for text in said)


def test_the_first_restart_comes_at_once_and_a_stop_is_heard_in_the_pause_before_others(tmp_path: Path) -> None:
    restarts = restarts_of(a_run(tmp_path))
    start = time.monotonic()
    with StopSignals(patient=False) as signals:
        restarts.after(KILLED)
        assert not restarts.pause(signals)
        assert time.monotonic() - start < 0.5
        for _ in range(4):
            restarts.after(KILLED)
        signal.raise_signal(signal.SIGTERM)
        assert restarts.pause(signals)
    assert time.monotonic() - start < 5


def test_an_error_that_names_no_kind_of_ours_is_still_told(tmp_path: Path) -> None:
    restarts = restarts_of(a_run(tmp_path, most=0))
    with pytest.raises(SheafError) as raised:
        restarts.after(CRASHED)
    assert "rank 0 failed: OSError: [Errno 5] it broke" in raised.value.why
