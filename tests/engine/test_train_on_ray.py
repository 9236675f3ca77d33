"""Ranks of a run on a real Ray cluster of two nodes: placed, joined, stopped, and started again without a lost node."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray_cluster import Nodes, cluster, node_of
from tests.train.training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import EnvironmentProblem, UsageError
from sheaf.train import journal
from sheaf.train.launch import train
from sheaf.train.ray_ranks import _cpus_each
from sheaf.train.run import Run


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster(2) as found:
        yield found


def test_ranks_on_two_nodes_make_the_run_of_one_process(nodes: Nodes, tmp_path: Path) -> None:
    corpus, recipe = make_corpus(tmp_path), make_recipe(tmp_path, budget={"steps": 12})
    alone = Path(train(recipe, corpus, console=Silent())["run"])
    done = train(recipe, corpus, nproc=2, engine="ray", console=Silent())
    assert done["steps"] == 12 and done["restarts"] == 0
    mine, theirs = journal.read(alone), journal.read(Path(done["run"]))
    assert [line["samples"] for line in theirs] == [line["samples"] for line in mine]
    assert [line["loss"] for line in theirs] == pytest.approx([line["loss"] for line in mine], rel=1e-4)
    assert "2 ranks on the Ray cluster" in (Path(done["run"]) / "notes.txt").read_text()


def test_more_ranks_than_the_cluster_has_room_for_are_refused(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sheaf.train.ray_ranks.PLACE_SECONDS", 1.0)
    recipe = make_recipe(tmp_path, budget={"steps": 2})
    with pytest.raises(EnvironmentProblem, match="no room for 3 ranks") as raised:
        train(recipe, make_corpus(tmp_path), nproc=3, engine="ray", console=Silent())
    assert "2 CPUs" in raised.value.why


CHILD = """
import sys
from pathlib import Path
from sheaf.console import Silent
from sheaf.errors import SheafError
from sheaf.train.launch import resume
try:
    resume(Path(sys.argv[1]), engine="ray", console=Silent())
except SheafError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def test_a_node_lost_costs_the_steps_since_the_checkpoint_and_a_stop_ends_in_order(
    nodes: Nodes, tmp_path: Path
) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 400}, checkpoint_every=20, restarts={"ranks": "fewer"})
    run = Run.open(Path(train(recipe, corpus, nproc=2, start_only=True, console=Silent())["run"]))
    driver = subprocess.Popen([sys.executable, "-c", CHILD, str(run.folder)], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: journal.steps_done(run.folder) > 25, driver)
    nodes.kill(node_of(ranks_of(run)[1].pid, nodes))
    wait_for(lambda: (run.folder / "restarts.jsonl").exists(), driver)
    (line,) = journal.read_lines(run.folder / "restarts.jsonl")
    assert line["ranks"] == 1 and line["from_step"] % 20 == 0 and line["down_seconds"] < 120
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) == 130, driver.stderr.read() if driver.stderr else ""
    assert not ranks_of(run)
    done = journal.steps_done(run.folder)
    assert [one["step"] for one in journal.read(run.folder)] == list(range(done))
    nodes.add()


def ranks_of(run: Run) -> list[psutil.Process]:
    found: list[tuple[int, psutil.Process]] = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:] == ["-m", "sheaf.train.worker", str(run.folder)]:
            found.append((int(process.environ()["RANK"]), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def wait_for(what: Callable[[], object], driver: subprocess.Popen[str], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert driver.poll() is None, driver.stderr.read() if driver.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_cpus_of_a_rank_are_as_many_as_let_all_ranks_fit() -> None:
    assert _cpus_each([8, 8], 2) == 8
    assert _cpus_each([8, 8], 3) == 4
    assert _cpus_each([8, 2], 5) == 2
    assert _cpus_each([1, 1], 5) == 1


def test_an_engine_that_does_not_exist_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no engine 'rya'") as raised:
        train(make_recipe(tmp_path), make_corpus(tmp_path), engine="rya", console=Silent())
    assert "ray" in raised.value.fix and not (tmp_path / "runs").exists()
