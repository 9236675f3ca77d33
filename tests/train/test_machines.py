"""The same command on each machine: they meet, train one run, and end together. Machines are network namespaces."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.parallel.hosts import end_of, ended, needs_namespaces, two_hosts

from sheaf.errors import EnvironmentProblem, UsageError
from sheaf.train import journal
from sheaf.train.machines import Machines
from sheaf.train.run import Run

RECIPE = """
name: both
sources: [{name: text, uri: ./text}]
prepare: {tokenizer: {train: bpe, vocab_size: 300}}
model: {family: llama, hidden_size: 32, intermediate_size: 64, layers: 2, heads: 4, kv_heads: 2}
train:
  {sequence_length: 32, batch_tokens: 256, budget: {steps: 6}, compile: "off", precision: fp32, checkpoint_every: 3}
"""


@needs_namespaces
def test_two_machines_given_one_command_train_one_run_and_go_on_with_another(tmp_path: Path) -> None:
    (tmp_path / "sheaf.yaml").write_text(RECIPE)
    (tmp_path / "text").mkdir()
    for n in range(30):
        (tmp_path / "text" / f"{n}.txt").write_text(f"{n} sheets make a sheaf, and {n * n} make a stack. " * 20)
    with two_hosts("1gbit") as (a, b):
        words = ["--nnodes", "2", "--rdzv", "10.98.0.1:29532", "--nproc", "1"]
        said = both((a, b), ["train", "sheaf.yaml", *words], tmp_path)
        assert "held-out loss" in said[0] and "as the host says" in said[1]
        (folder,) = (tmp_path / "workspace" / "runs").iterdir()
        run = Run.open(folder)
        assert run.ranks == 2 and run.result is not None
        assert [line["ranks"] for line in journal.read(folder)] == [2] * 6
        run.updated(result=None)
        said = both((a, b), ["resume", str(folder), *words], tmp_path)
        assert "held-out loss" in said[0] and str(folder) in said[1]


def both(hosts: tuple[str, str], words: list[str], folder: Path) -> list[str]:
    running: list[subprocess.Popen[str]] = []
    for host in hosts:
        command = ["ip", "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME={end_of(host)}", "OMP_NUM_THREADS=1"]
        command += [sys.executable, "-m", "sheaf", *words]
        running.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return ended(running, seconds=240)


def test_options_that_name_no_machines_are_refused() -> None:
    assert Machines.of(None, None, 1) is None
    for number, rendezvous in (("2", None), (None, "a:1"), ("0", "localhost:1"), ("2:1", "localhost:1"), ("2", "x")):
        with pytest.raises(UsageError):
            Machines.of(number, rendezvous, 1)
    with pytest.raises(EnvironmentProblem, match="not known here"):
        Machines.of("2", "no-such-host.invalid:29500", 1)
    here = Machines.of("1:4", "localhost:29500", 8)
    assert here is not None and here.here_is_host and here.ranks == 32


def test_nothing_is_left_behind_when_the_command_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sheaf.yaml").write_text(RECIPE)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text("sheets make a sheaf " * 500)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["train", "sheaf.yaml", "--nnodes", "2", "--rdzv", f"localhost:{port}"]  # the other one never comes
    command = subprocess.Popen([sys.executable, "-m", "sheaf", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (agents := psutil.Process(command.pid).children(recursive=True)) or not listens(port):
            assert command.poll() is None and time.monotonic() < end
            time.sleep(0.1)
    finally:
        command.kill()
        command.wait()
    assert not psutil.wait_procs(agents, timeout=20)[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
