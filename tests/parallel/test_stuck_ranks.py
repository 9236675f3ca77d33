"""Ranks that hang are found by their missing signs of life, and the one to blame is named with its stack."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from control_group import memory_group
from sheaf.parallel import stuck
from sheaf.parallel.launch import Ended, forker, run_ranks
from sheaf.parallel.pulse import ALLOWED, Patience, Phase
from sheaf.processes import StopSignals


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    monkeypatch.setattr(stuck, "ANSWER_SECONDS", 1.0)


def run(what: str, folder: Path, ranks: int = 2, least: float = 1.0) -> tuple[Ended, list[int]]:
    moved: list[int] = []
    with StopSignals(patient=False) as signals, forker("live_rank", [], ranks) as starts:
        ended = run_ranks(
            starts,
            [what, str(folder)],
            range(ranks),
            folder,
            signals=signals,
            patience=Patience(least),
            moved=moved.append,
        )
    return ended, moved


def test_a_rank_that_is_stopped_by_a_signal_is_named_with_its_state_and_step(tmp_path: Path) -> None:
    ended, moved = run("stops", tmp_path)
    assert ended.failed is not None
    (found,) = ended.failed.stuck
    assert (found.rank, found.phase, found.step) == (1, Phase.STEP, 7)
    assert "rank 1 is stuck in a step after 7 steps: no progress for" in str(found)
    assert "stopped by a signal (state T" in str(found)
    assert "it did not answer" in found.lines()[1]
    assert moved == [3]


def test_a_rank_that_is_stopped_is_found_while_another_one_has_all_the_time_it_wants(tmp_path: Path) -> None:
    ended, _ = run("stops while the other saves", tmp_path)
    assert ended.failed is not None
    assert [found.rank for found in ended.failed.stuck] == [1]


def test_of_ranks_that_hang_the_one_that_does_not_wait_for_others_is_named_with_its_stack(tmp_path: Path) -> None:
    ended, _ = run("locks", tmp_path)
    assert ended.failed is not None
    (found,) = ended.failed.stuck
    assert found.rank == 1 and not found.waiting and not found.state
    assert "in wait_for_a_lock_that_nobody_frees" in found.stack.splitlines()[0]
    assert any("wait_for_a_lock_that_nobody_frees" in line for line in found.lines())


def test_when_all_wait_for_each_other_all_are_named(tmp_path: Path) -> None:
    ended, _ = run("nothing else", tmp_path)
    assert ended.failed is not None
    assert [found.rank for found in ended.failed.stuck] == [0, 1]
    assert all("waits for its peers" in str(found) and "wait_for_peers" in found.stack for found in ended.failed.stuck)


def test_a_rank_that_saves_has_more_time_than_one_that_makes_a_step(tmp_path: Path) -> None:
    assert run("saves", tmp_path, least=0.5)[0] == Ended()


def test_a_rank_that_nobody_looks_at_ends_itself_and_shows_where_it_was(tmp_path: Path) -> None:
    code = """
import time
from sheaf.parallel.pulse import Patience, pulse
def wait_for_ever():
    time.sleep(600)
pulse.set_alarm(Patience(0.5))
pulse.begin(3)
for step in range(4, 9):
    time.sleep(0.3)
    pulse.stepped(step, 0.01)
print("made its steps", flush=True)
wait_for_ever()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "made its steps" in ended.stdout
    assert "Timeout" in ended.stderr and "in wait_for_ever" in ended.stderr


def test_patience_follows_what_is_usual_and_is_never_less_than_what_was_asked_for() -> None:
    patience = Patience(60.0)
    assert patience.limit(Phase.STEP) == 60.0
    patience.seconds.extend([20.0, 20.0, 500.0])
    assert patience.limit(Phase.STEP) == 200.0
    assert patience.limit(Phase.SAVING) == ALLOWED[Phase.SAVING]
    patience.seconds.extend([200.0] * 10)
    assert patience.limit(Phase.SAVING) == 2000.0


def test_what_a_dead_rank_had_started_goes_with_it(tmp_path: Path) -> None:
    ended, _ = run("leaves a child", tmp_path, least=60.0)
    assert ended.failed is not None and not ended.failed.out_of_memory
    assert (ended.failed.rank, ended.failed.code, ended.failed.step) == (1, -9, 7)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def small_memory(tmp_path: Path) -> Generator[None]:
    """tmp_path/group: a control group whose processes may have 64 MB."""
    with memory_group(64 << 20) as made:
        (tmp_path / "group").symlink_to(made)
        yield


def test_a_rank_that_the_system_killed_for_lack_of_memory_is_told_from_one_that_was_killed(
    tmp_path: Path, small_memory: None
) -> None:
    ended, _ = run("eats memory", tmp_path, least=60.0)
    assert ended.failed is not None
    assert (ended.failed.rank, ended.failed.code, ended.failed.out_of_memory) == (1, -9, True)


def test_last_words_reach_the_launcher_and_name_who_is_to_blame(tmp_path: Path) -> None:
    ended, _ = run("says why", tmp_path, ranks=3, least=60.0)
    assert ended.failed is not None
    assert ended.failed.rank == 1
    assert ended.failed.words == {"kind": "TrainingFailed", "what": "numbers"}
