"""What the Ray engine promises, on a real cluster of two nodes: as the local one, and nodes may die."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_tasks
import pytest
from ray_cluster import Nodes, cluster, node_of

from sheaf.engine.base import Task
from sheaf.engine.failures import TaskFailed
from sheaf.engine.ray import RayEngine
from sheaf.errors import EnvironmentProblem, RecipeError, UsageError

HERE = Path(__file__).parent


def task(function: Any, label: str = "", weight: int = 1, **arguments: Any) -> Task:
    return Task(f"engine_tasks:{function.__name__}", arguments, label, weight)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))  # for the nodes' workers
        with cluster(2) as found:
            yield found


@pytest.fixture(scope="module")
def engine(nodes: Nodes) -> Iterator[RayEngine]:
    engine = RayEngine(prefixes=("engine_tasks",))
    yield engine
    engine.close()


def test_every_task_gives_one_result_and_both_nodes_work(engine: RayEngine, tmp_path: Path) -> None:
    weights: list[int] = []
    both = [task(engine_tasks.meet, folder=str(tmp_path), name=name, others=["a", "b"]) for name in ("a", "b")]
    tasks = [*both, *(task(engine_tasks.double, weight=n, n=n) for n in range(50))]
    results = list(engine.run(tasks, weights.append))
    assert len({r["node"] for t, r in results if t in both}) == 2
    assert sorted(r["n"] for t, r in results if t not in both) == [2 * n for n in range(50)]
    assert sum(weights) == sum(range(50)) + 2


def test_tasks_are_drawn_only_as_workers_become_free(engine: RayEngine) -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[Task]:
        for n in range(100):
            drawn.append(n)
            yield task(engine_tasks.double, n=n)

    for done, _ in enumerate(engine.run(tasks()), start=1):
        assert len(drawn) <= done + 2 * engine.workers


def test_a_task_whose_worker_is_killed_twice_succeeds_at_the_third_try(engine: RayEngine, tmp_path: Path) -> None:
    doomed = task(engine_tasks.die, tally=str(tmp_path / "tally"), times=2)
    results = list(engine.run([doomed, *(task(engine_tasks.double, n=n) for n in range(20))]))
    assert len(results) == 21
    assert next(r for t, r in results if t is doomed) == {"tries": 3}


def test_a_task_that_kills_three_workers_is_named_and_the_engine_lives_on(engine: RayEngine, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    with pytest.raises(EnvironmentProblem, match="read batch 7"):
        list(engine.run([task(engine_tasks.die, "read batch 7", tally=str(tally), times=99)]))
    assert tally.read_text() == "xxx"
    assert [r["n"] for _, r in engine.run([task(engine_tasks.double, n=1)])] == [2]


def test_what_a_dying_node_was_doing_is_done_by_another_and_nothing_else_is_done_again(
    engine: RayEngine, nodes: Nodes, tmp_path: Path
) -> None:
    tally, go = tmp_path / "tally", tmp_path / "go"
    finished = [task(engine_tasks.count_in, tally=str(tmp_path / f"t{n}")) for n in range(10)]
    waiting = task(engine_tasks.announce_and_wait, tally=str(tally), go=str(go))
    run = engine.run([*finished, waiting])
    results = [next(run) for _ in finished]
    while not tally.exists() or not tally.read_text().endswith("\n"):
        threading.Event().wait(0.02)
    nodes.kill(node_of(int(tally.read_text().split()[0]), nodes))
    nodes.add()
    go.touch()
    results += run
    assert len(results) == 11
    assert len(tally.read_text().splitlines()) == 2  # once on the node that died, once on another
    assert all((tmp_path / f"t{n}").read_text() == "x" for n in range(10))


def test_errors_surface_as_from_the_local_engine(engine: RayEngine) -> None:
    with pytest.raises(RecipeError) as raised:
        list(engine.run([task(engine_tasks.refuse)]))
    error = raised.value
    assert (error.what, error.where, error.why, error.fix) == ("no such column", "sheaf.yaml:3", "because", "do this")
    with pytest.raises(TaskFailed, match="score shard 3") as failed:
        list(engine.run([task(engine_tasks.blunder, "score shard 3")]))
    assert "in blunder" in "".join(failed.value.__notes__)
    with pytest.raises(TaskFailed, match="JSON"):
        list(engine.run([task(engine_tasks.return_nan)]))
    with pytest.raises(TaskFailed, match="not a task"):
        list(engine.run([Task("os:getcwd", {})]))


def test_a_failure_is_raised_after_the_running_tasks_have_ended(engine: RayEngine, tmp_path: Path) -> None:
    mark, results = str(tmp_path / "mark"), []
    run = engine.run([task(engine_tasks.wait_for, path=mark), task(engine_tasks.blunder, mark=mark)])
    with pytest.raises(TaskFailed):
        for pair in run:
            results.append(pair)
    assert [r for _, r in results] == [{"seen": mark}]


def test_workers_have_one_thread_and_load_no_torch(engine: RayEngine) -> None:
    [(_, result)] = engine.run([task(engine_tasks.modules)])
    assert "torch" not in result["modules"]
    assert result["threads"] == os.environ.get("OMP_NUM_THREADS", "1")


def test_large_arguments_and_results_pass_whole(engine: RayEngine) -> None:
    text = "é\n" * 200_000
    [(_, result)] = engine.run([task(engine_tasks.big, n=300_000, text=text)])
    assert result["text"] == text + "y" * 300_000


def test_a_consumer_that_stops_early_ends_the_running_tasks(engine: RayEngine, tmp_path: Path) -> None:
    started, cleaned = tmp_path / "started", tmp_path / "cleaned"
    busy = task(engine_tasks.busy, started=str(started), cleaned=str(cleaned))
    run = engine.run([busy, task(engine_tasks.wait_for, path=str(started))])
    next(run)
    run.close()
    assert cleaned.exists()  # its `finally` ran
    assert [r["n"] for _, r in engine.run([task(engine_tasks.double, n=4)])] == [8]


def test_parsers_are_confined_on_a_node_as_they_are_here(engine: RayEngine) -> None:
    here = engine_tasks.confinement()
    [(_, there)] = engine.run([task(engine_tasks.confinement)])
    assert there == here
    assert any(here["level"].values())


PROGRAM = """
import sys
from sheaf.engine.base import Task
from sheaf.engine.ray import RayEngine
engine = RayEngine(1, prefixes=("engine_tasks",))
try:
    print(list(engine.run([Task("engine_tasks:" + sys.argv[1], {}), Task("engine_tasks:listening", {})])))
finally:
    engine.close()
"""


def run_alone(function: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that starts a cluster of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(HERE), **environment}
    return subprocess.run(
        [python, "-c", PROGRAM, function], env=kept, capture_output=True, text=True, timeout=500, check=False
    )


def test_a_cluster_of_our_own_listens_here_alone_says_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_alone("chatter", TMPDIR=str(tmp_path), HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stderr == ""  # what tasks and daemons say goes to their logs
    assert "127.0.0.1" in done.stdout and "everywhere" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_interpreter_in_a_folder_with_a_blank_in_its_name_runs_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "my environment"
    folder.symlink_to(sys.prefix, target_is_directory=True)
    done = run_alone("chatter", str(folder / "bin" / Path(sys.executable).name))
    assert done.returncode == 0, done.stderr


def test_a_cluster_that_does_not_answer_is_named() -> None:
    done = run_alone("chatter", RAY_ADDRESS="127.0.0.1:1")
    assert "the Ray cluster cannot be joined" in done.stderr
    assert "127.0.0.1:1" in done.stderr and "RAY_ADDRESS" in done.stderr


def test_an_engine_without_workers_is_refused() -> None:
    with pytest.raises(UsageError):
        RayEngine(0)
