"""One corpus: on 1, 2 and 4 workers, on a Ray cluster, whatever is killed, wherever and in what order files lie."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import mixed_sources
import psutil
import pytest
from ray_cluster import Nodes, cluster

from sheaf.prepare import read
from sheaf.prepare.pipeline import prepare

STAGES = ("read", "score", "privacy", "evaluation", "minhash", "encode")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    mixed_sources.make(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def several_shards() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "BATCH_ITEMS", 8)
        yield


@pytest.fixture(scope="module")
def expected(data: Path) -> str:
    done = prepare(mixed_sources.recipe(data, "./one"), workers=1)
    dropped = done["records"]["dropped"]
    assert {"near-duplicate", "evaluation", "privacy:card"} <= dropped.keys(), (
        dropped
    )  # every stage had something to do
    assert done["records"]["duplicate"] and done["records"]["quarantined"]
    return done["corpus"]


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_same_corpus(data: Path, expected: str, workers: int) -> None:
    assert prepare(mixed_sources.recipe(data, f"./w{workers}"), workers=workers)["corpus"] == expected


def test_files_that_came_in_another_order_to_another_machine_give_the_same_corpus(
    expected: str, tmp_path: Path
) -> None:
    other = tmp_path / "home of somebody else/data"
    mixed_sources.make(other, shuffle=7)
    assert prepare(mixed_sources.recipe(other, "./w"), workers=2)["corpus"] == expected


class Watching:
    """A console that adds up what each stage was told: {title: [total, done]}, in order."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Callable[[int], None]]:
        assert title not in self.stages, "a stage is shown once"
        seen = self.stages[title] = [total or 0, 0]

        def advance(n: int) -> None:
            seen[1] += n

        yield advance

    def note(self, text: str) -> None:
        pass


class Killing:
    """A console that kills a node when a stage's first task has ended, and brings another up after the stage."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.killed = nodes, list[str]()

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Callable[[int], None]]:
        def advance(n: int) -> None:
            if title in STAGES and title not in self.killed:
                self.killed.append(title)
                self.nodes.kill(self.nodes.nodes[len(self.killed) % len(self.nodes.nodes)])

        yield advance
        if title in self.killed:
            self.nodes.add()

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster(2) as found:
        yield found


def test_a_cluster_gives_the_same_corpus_and_shows_the_same_progress(nodes: Nodes, data: Path, expected: str) -> None:
    here, there = Watching(), Watching()
    assert prepare(mixed_sources.recipe(data, "./here"), workers=2, console=here)["corpus"] == expected
    assert prepare(mixed_sources.recipe(data, "./ray"), engine="ray", console=there)["corpus"] == expected
    assert list(there.stages) == list(here.stages) and there.stages == here.stages
    assert all(there.stages[title][0] == there.stages[title][1] > 0 for title in STAGES)


def test_a_node_that_dies_in_each_stage_changes_nothing(nodes: Nodes, data: Path, expected: str) -> None:
    killing = Killing(nodes)
    done = prepare(mixed_sources.recipe(data, "./killed-nodes"), engine="ray", console=killing)
    assert tuple(killing.killed) == STAGES
    assert done["corpus"] == expected


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import mixed_sources
from sheaf.prepare import read
from sheaf.prepare.pipeline import prepare
read.BATCH_ITEMS = 8
print(prepare(mixed_sources.recipe(Path(sys.argv[1]), sys.argv[2]), workers=2)["corpus"])
"""


def files_in(workspace: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(workspace))


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_sigkills_of_the_whole_or_of_a_worker_at_any_moment_change_nothing(
    data: Path, expected: str, tmp_path: Path, kills: int
) -> None:
    """Moments are counts of files in the workspace: a slow machine is killed at the same ones."""
    rng = random.Random(kills)
    whole = files_in(data / "one")
    workspace = data / f"killed-{kills}"
    command = [sys.executable, "-c", PROGRAM, str(data), str(workspace), str(Path(__file__).parent)]
    killed = 0
    for n, moment in enumerate(sorted(rng.sample(range(1, whole), kills))):
        process = subprocess.Popen(command, start_new_session=True)
        while process.poll() is None and files_in(workspace) < moment:
            threading.Event().wait(0.005)
        if process.poll() is None:
            killed += 1
            if n % 2:  # a worker; the run itself goes on, and then it is its turn
                shot = workers_of(process.pid)
                for pid in shot[: 1 + rng.randrange(2)]:
                    with contextlib.suppress(ProcessLookupError):  # it was done just now
                        os.kill(pid, signal.SIGKILL)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed >= kills // 2, "hardly a run was killed: the test proves little"
    assert subprocess.check_output(command, text=True).strip() == expected
    assert not list(workspace.rglob(".*.tmp-*"))
    shutil.rmtree(workspace)


def workers_of(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children()]
    return []
