"""How several ranks begin and end: whom they listen to, who ends with whom, and what is said then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from test_ranks_agree import LAUNCHER
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import Interrupted
from sheaf.train.launch import train

AGENT = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"


def ranks_of(launcher: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(launcher).children(recursive=True) if "sheaf.train.worker" in p.cmdline()]


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


def test_ranks_listen_on_loopback_alone_and_no_rendezvous_unpickles_for_them(tmp_path: Path) -> None:
    listening: set[str] = set()

    class Looks(Silent):
        def note(self, text: str) -> None:
            if text.startswith("step 1/"):
                for process in (psutil.Process(), *ranks_of(os.getpid())):
                    found = process.net_connections("inet")
                    listening.update(c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN)
                os.kill(os.getpid(), signal.SIGTERM)

    recipe = make_recipe(tmp_path, budget={"steps": 100_000})
    with pytest.raises(Interrupted):
        train(recipe, make_corpus(tmp_path), nproc=2, console=Looks())
    assert listening and listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert AGENT not in sys.modules
    assert not list((tmp_path / "runs" / "test-001").glob(".ranks-*"))


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
