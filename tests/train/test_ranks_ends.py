"""How several ranks begin and end: whom they listen to, who ends with whom, and what is said then."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from test_ranks_agree import LAUNCHER
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import EnvironmentProblem
from sheaf.train import journal
from sheaf.train.launch import train
from sheaf.train.run import Run

AGENT = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"


def ranks_of(launcher: int) -> list[psutil.Process]:
    return [process for process in all_of(launcher) if process.name().startswith("sheaf rank")]


def all_of(launcher: int) -> list[psutil.Process]:
    return psutil.Process(launcher).children(recursive=True)


@pytest.fixture
def starting(tmp_path: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A launcher, its process group's head like that of a terminal, and its two ranks, which have just been started."""
    make_corpus(tmp_path)
    path = tmp_path / "recipe.json"
    path.write_text(make_recipe(tmp_path, budget={"steps": 100_000}).model_dump_json(by_alias=True))
    command = [sys.executable, "-c", LAUNCHER, str(path)]
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    while len(ranks := ranks_of(launcher.pid)) < 2:
        assert launcher.poll() is None
    return launcher, ranks


class KillsARank(Silent):
    """Looks who listens where after the first step, then kills the last rank."""

    def __init__(self) -> None:
        self.listening: set[str] = set()
        self.killed_at = 0.0

    def note(self, text: str) -> None:
        if text.startswith("step 1/"):
            ranks = ranks_of(os.getpid())
            for process in (psutil.Process(), *ranks):
                found = process.net_connections("inet")
                self.listening.update(c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN)
            self.killed_at = time.monotonic()
            os.kill(ranks[-1].pid, signal.SIGKILL)


@dataclass(frozen=True)
class Death:
    """What came of a run on two ranks, one of which was killed."""

    run: Path
    error: EnvironmentProblem
    listening: set[str]
    seconds: float
    left: list[psutil.Process]


@pytest.fixture(scope="module")
def death(tmp_path_factory: pytest.TempPathFactory) -> Death:
    root, console = tmp_path_factory.mktemp("death"), KillsARank()
    recipe = make_recipe(root, budget={"steps": 100_000}, restarts={"most": 0})
    with pytest.raises(EnvironmentProblem) as raised:
        train(recipe, make_corpus(root), nproc=2, console=console)
    seconds = time.monotonic() - console.killed_at
    return Death(root / "runs" / "test-001", raised.value, console.listening, seconds, ranks_of(os.getpid()))


def test_without_restarts_a_dead_rank_ends_the_run_within_seconds_and_says_how_to_go_on(death: Death) -> None:
    assert "died, so the run has stopped" in death.error.what
    assert "SIGKILL" in death.error.why
    assert f"sheaf resume {death.run}" in death.error.fix
    assert death.seconds < 30  # it takes one on an idle machine
    assert not death.left


def test_ranks_listen_on_loopback_alone_and_no_rendezvous_unpickles_for_them(death: Death) -> None:
    assert death.listening and death.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    code = f"import sys, sheaf.train.launch, sheaf.train.worker; sys.exit({AGENT!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert not list(death.run.glob(".ranks-*"))


def test_a_launcher_that_is_killed_takes_ranks_along_that_only_just_start(
    starting: tuple[subprocess.Popen[bytes], list[psutil.Process]],
) -> None:
    launcher, ranks = starting
    launcher.kill()
    launcher.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


def test_ctrl_c_while_ranks_start_is_quiet_and_promises_no_checkpoint(
    starting: tuple[subprocess.Popen[bytes], list[psutil.Process]], tmp_path: Path
) -> None:
    launcher, ranks = starting
    os.killpg(launcher.pid, signal.SIGINT)
    message = launcher.communicate()[1].decode()
    assert launcher.returncode == 130, message
    assert "Traceback" not in message
    assert "stopped by SIGINT; no checkpoint yet" in message
    assert f"start again with: sheaf resume {tmp_path / 'runs' / 'test-001'}" in message
    assert not psutil.wait_procs(ranks, timeout=10)[1]


def test_ranks_that_torchrun_would_start_meet_where_it_says_and_finish_the_run(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, budget={"steps": 4}, checkpoint_every=2)
    run = Run.open(Path(train(recipe, make_corpus(tmp_path), console=Silent())["run"])).updated(result=None)
    (run.folder / "checkpoints" / "step-00000004" / "COMMITTED").unlink()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "sheaf.train.worker", str(run.folder)],
            env={**os.environ, **meeting, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert (Run.open(run.folder).result or {})["steps"] == 4
    assert [line["ranks"] for line in journal.read(run.folder)] == [1, 1, 2, 2]
