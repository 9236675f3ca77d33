"""What the local engine promises: every task once, deaths survived, errors unchanged, nobody left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_tasks
import pytest

import sheaf.engine
from sheaf.console import telling
from sheaf.engine.base import Task
from sheaf.engine.failures import TaskFailed
from sheaf.engine.local import LocalEngine
from sheaf.errors import EnvironmentProblem, RecipeError, UsageError

HERE = Path(__file__).parent


def task(function: Any, label: str = "", weight: int = 1, **arguments: Any) -> Task:
    return Task(f"engine_tasks:{function.__name__}", arguments, label, weight)


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(2, prefixes=("engine_tasks",))
    yield engine
    engine.close()


def wait_until_gone(pid: int, seconds: float = 20) -> bool:
    """True once no process has that pid (or it is somebody else's zombie)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def test_every_task_gives_one_result(engine: LocalEngine) -> None:
    weights: list[int] = []
    tasks = [task(engine_tasks.double, weight=n, n=n) for n in range(50)]
    results = list(engine.run(tasks, weights.append))
    assert sorted(t.arguments["n"] for t, _ in results) == list(range(50))
    assert all(r["n"] == 2 * t.arguments["n"] for t, r in results)
    assert sum(weights) == sum(range(50))
    assert len({r["pid"] for _, r in results} | {os.getpid()}) == 3  # two workers, neither of them this process


def test_one_worker_is_a_process_too() -> None:
    engine = LocalEngine(1, prefixes=("engine_tasks",))
    pids = {r["pid"] for _, r in engine.run([task(engine_tasks.double, n=n) for n in range(5)])}
    engine.close()
    assert len(pids) == 1 and os.getpid() not in pids


def test_workers_are_kept_between_runs_and_end_at_close(engine: LocalEngine) -> None:
    first = {r["pid"] for _, r in engine.run([task(engine_tasks.double, n=1)])}
    second = {r["pid"] for _, r in engine.run([task(engine_tasks.double, n=1)])}
    assert first == second
    engine.close()
    assert all(wait_until_gone(pid) for pid in first)


def test_tasks_are_drawn_only_as_workers_become_free(engine: LocalEngine) -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[Task]:
        for n in range(100):
            drawn.append(n)
            yield task(engine_tasks.double, n=n)

    for done, _ in enumerate(engine.run(tasks()), start=1):
        assert len(drawn) <= done + 2 * engine.workers


def test_a_task_whose_worker_is_killed_twice_succeeds_at_the_third_try(engine: LocalEngine, tmp_path: Path) -> None:
    doomed = task(engine_tasks.die, tally=str(tmp_path / "tally"), times=2)
    others = [task(engine_tasks.double, n=n) for n in range(20)]
    results = list(engine.run([doomed, *others]))
    assert len(results) == 21
    assert next(r for t, r in results if t is doomed) == {"tries": 3}


def test_a_retry_happens_even_when_all_other_tasks_are_done(engine: LocalEngine, tmp_path: Path) -> None:
    results = list(engine.run([task(engine_tasks.die, tally=str(tmp_path / "tally"), times=2)]))
    assert [r for _, r in results] == [{"tries": 3}]


def test_a_task_that_kills_three_workers_is_named_and_the_engine_lives_on(engine: LocalEngine, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    doomed = task(engine_tasks.die, "read batch 7", tally=str(tally), times=99)
    with pytest.raises(EnvironmentProblem, match="read batch 7") as raised:
        list(engine.run([doomed]))
    assert "SIGKILL" in raised.value.why
    assert tally.read_text() == "xxx"
    assert [r["n"] for _, r in engine.run([task(engine_tasks.double, n=1)])] == [2]


def test_a_segfault_is_named(engine: LocalEngine) -> None:
    with pytest.raises(EnvironmentProblem) as raised:
        list(engine.run([task(engine_tasks.segfault)]))
    assert "SIGSEGV" in raised.value.why


def test_an_idle_worker_that_is_killed_is_replaced_and_no_task_pays(engine: LocalEngine, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    for _ in range(4):  # more often than a task may lose its worker
        for pid in {r["pid"] for _, r in engine.run([task(engine_tasks.double, n=n) for n in range(4)])}:
            os.kill(pid, signal.SIGKILL)
            assert wait_until_gone(pid)
    results = list(engine.run([task(engine_tasks.die, tally=str(tally), times=2)]))
    assert [r for _, r in results] == [{"tries": 3}]


def test_a_death_is_seen_even_if_a_child_holds_the_pipe_open(engine: LocalEngine, tmp_path: Path) -> None:
    doomed = task(engine_tasks.die_leaving_a_child_that_holds_the_pipe, tally=str(tmp_path / "tally"))
    assert [r for _, r in engine.run([doomed])] == [{}]


def test_errors_of_ours_surface_unchanged(engine: LocalEngine) -> None:
    with pytest.raises(RecipeError) as raised:
        list(engine.run([task(engine_tasks.refuse)]))
    error = raised.value
    assert (error.what, error.where, error.why, error.fix) == ("no such column", "sheaf.yaml:3", "because", "do this")


def test_a_missing_extra_still_names_its_pip_command(engine: LocalEngine) -> None:
    with pytest.raises(EnvironmentProblem, match=r"sheaf\[hf\]"):
        list(engine.run([task(engine_tasks.miss)]))


def test_other_exceptions_name_the_task_and_carry_the_traceback(engine: LocalEngine) -> None:
    with pytest.raises(TaskFailed, match="score shard 3") as raised:
        list(engine.run([task(engine_tasks.blunder, "score shard 3")]))
    assert raised.value.why == "ValueError: of all things"
    assert "in blunder" in "".join(raised.value.__notes__)


def test_a_failure_is_raised_after_the_running_tasks_have_ended(engine: LocalEngine, tmp_path: Path) -> None:
    mark, results = str(tmp_path / "mark"), []
    run = engine.run([task(engine_tasks.wait_for, path=mark), task(engine_tasks.blunder, mark=mark)])
    with pytest.raises(TaskFailed):
        for pair in run:
            results.append(pair)
    assert [r for _, r in results] == [{"seen": mark}]


@pytest.mark.parametrize("function", [engine_tasks.return_tuple, engine_tasks.return_nan])
def test_a_result_that_json_cannot_say_is_refused(engine: LocalEngine, function: Any) -> None:
    with pytest.raises(TaskFailed, match="JSON"):
        list(engine.run([task(function)]))


def test_arguments_that_json_cannot_say_are_refused(engine: LocalEngine) -> None:
    with pytest.raises((TypeError, ValueError), match="JSON"):
        list(engine.run([task(engine_tasks.double, n={1: 2})]))


def test_what_a_task_prints_is_not_taken_for_an_answer(engine: LocalEngine) -> None:
    assert [r for _, r in engine.run([task(engine_tasks.chatter)])] == [{"stdin": ""}]


def test_large_arguments_and_results_pass_whole(engine: LocalEngine) -> None:
    text = "é\n" * 2_000_000
    [(_, result)] = engine.run([task(engine_tasks.big, n=3_000_000, text=text)])
    assert result["text"] == text + "y" * 3_000_000


def test_only_functions_under_the_registered_modules_are_tasks(engine: LocalEngine) -> None:
    with pytest.raises(TaskFailed, match="not a task"):
        list(engine.run([Task("os:getcwd", {})]))
    with pytest.raises(TaskFailed, match="not a task"):
        list(engine.run([Task("engine_tasks_of_another:f", {})]))


def test_workers_start_light_and_with_one_thread_each(engine: LocalEngine) -> None:
    [(_, result)] = engine.run([task(engine_tasks.modules)])
    assert not {"torch", "numpy", "pyarrow", "pydantic"} & set(result["modules"])
    assert result["threads"] == os.environ.get("OMP_NUM_THREADS", "1")


def test_a_consumer_that_stops_early_ends_the_running_tasks(engine: LocalEngine, tmp_path: Path) -> None:
    started, cleaned = tmp_path / "started", tmp_path / "cleaned"
    hang = task(engine_tasks.hang, started=str(started), cleaned=str(cleaned))
    run = engine.run([hang, task(engine_tasks.wait_for, path=str(started))])
    next(run)
    run.close()
    assert all(wait_until_gone(int(pid)) for pid in started.read_text().split())
    assert cleaned.exists()  # its `finally` ran
    assert [r["n"] for _, r in engine.run([task(engine_tasks.double, n=4)])] == [8]


PARENT = """
import sys
sys.path.insert(0, {here!r})
import signal
from sheaf.engine.base import Task
from sheaf.engine.local import LocalEngine
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell starts with it ignored
engine = LocalEngine(2, prefixes=("engine_tasks",))
arguments = [{{"started": f"{{sys.argv[1]}}/started{{n}}", "cleaned": f"{{sys.argv[1]}}/cleaned{{n}}"}} for n in (1, 2)]
try:
    list(engine.run([Task("engine_tasks:hang", a) for a in arguments]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("kill", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)])
def test_no_worker_outlives_its_parent(engine: LocalEngine, tmp_path: Path, kill: signal.Signals, code: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(here=str(HERE)), str(tmp_path)])
    marks = [tmp_path / "started1", tmp_path / "started2"]
    list(engine.run([task(engine_tasks.wait_for, path=str(m)) for m in marks]))
    parent.send_signal(kill)
    assert parent.wait(30) == code
    for mark in marks:
        worker, child = map(int, mark.read_text().split())
        assert wait_until_gone(worker)
        if kill == signal.SIGINT:  # with the parent's help the whole group goes, and cleans up first
            assert wait_until_gone(child)
            assert Path(str(mark).replace("started", "cleaned")).exists()
        else:
            os.kill(child, signal.SIGKILL)


def test_a_script_without_a_main_guard_can_use_the_engine(tmp_path: Path) -> None:
    script = tmp_path / "user script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from sheaf.engine.base import Task\nfrom sheaf.engine.local import LocalEngine\n"
        "engine = LocalEngine(1, prefixes=('engine_tasks',))\n"
        "print([r['n'] for _, r in engine.run([Task('engine_tasks:double', {'n': 3})])])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=True)
    assert done.stdout == "[6]\n"


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="did you mean 'local'"):
        sheaf.engine.make("locl")
    assert sheaf.engine.make("local", 3).workers == 3


def test_the_default_is_a_worker_for_each_cpu_this_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += "import sheaf.engine; print(sheaf.engine.make().workers)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


def test_what_a_task_tells_is_heard_once_by_whoever_listens_here(engine: LocalEngine) -> None:
    heard: list[str] = []
    tasks = [task(engine_tasks.tell_something, text="the server is away", length=n * 300_000) for n in range(6)]
    with telling(heard.append):
        results = list(engine.run(tasks))
    assert sorted(heard) == ["the server is away", "the server is away, by a thread"]
    assert {t.arguments["length"] == len(r["long"]) for t, r in results} == {True} and len(results) == 6
    assert len(list(engine.run(tasks[:1]))) == 1  # and where nobody listens, nothing happens
