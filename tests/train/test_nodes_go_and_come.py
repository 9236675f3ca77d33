"""Two nodes under torchrun, on loopback: one is killed, and comes back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_resume_exact import start
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.train import journal
from sheaf.train.launch import train
from sheaf.train.setup import order_of

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def node(run: Path, port: int) -> subprocess.Popen[bytes]:
    """torchrun's agent of a machine that has one rank and will do with one to two machines."""
    quick = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=5"
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "t", "--rdzv-conf", quick]
    size = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "20", "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *size, *meet, "-m", "sheaf.train.worker", str(run)]
    # docs/training.md says why: without the last one an agent may keep to a store of a round that is over
    told = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(command, env={**os.environ, **told})


def until(come: Callable[[], bool], *agents: subprocess.Popen[bytes]) -> None:
    while not come():
        assert all(agent.poll() is None for agent in agents)
        time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ranks_used(run: Path) -> list[int]:
    return [line["ranks"] for line in journal.read(run)]


def kill_node(agent: subprocess.Popen[bytes]) -> None:
    """All that runs on it is gone at once."""
    everything = [*psutil.Process(agent.pid).children(recursive=True), psutil.Process(agent.pid)]
    for process in everything:
        process.kill()
    agent.wait()


def test_a_node_that_is_gone_and_comes_back_changes_the_ranks_and_no_sample(tmp_path: Path) -> None:
    corpus, recipe = make_corpus(tmp_path), make_recipe(tmp_path, budget={"steps": 100_000}, checkpoint_every=20)
    run = Path(train(recipe, corpus, nproc=2, start_only=True, console=Silent())["run"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agents = [first := node(run, port)]
    try:
        until(lambda: listens(port), first)  # the first one keeps the rendezvous
        agents.append(second := node(run, port))
        until(lambda: len(ranks_used(run)) > 30 and ranks_used(run)[-1] == 2, *agents)
        kill_node(second)
        until(lambda: ranks_used(run)[-1:] == [1] and len(ranks_used(run)) > 60, first)
        agents.append(node(run, port))
        until(lambda: ranks_used(run)[-1:] == [2] and ranks_used(run).count(1) > 10, first, agents[-1])
        kill_node(first)  # the one that kept the rendezvous: then the job is over, and goes on by another command
    finally:
        for agent in agents:
            if agent.poll() is None:
                kill_node(agent)
    alone = start("resume", run, 1)
    try:
        done = journal.steps_done(run)
        until(lambda: ranks_used(run)[-1:] == [1] and journal.steps_done(run) > done + 10, alone)
    finally:
        alone.kill()
        alone.communicate()
    order = order_of(recipe, corpus, "train")
    lines = journal.read(run)
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert [line["samples"] for line in lines] == [order.digest(step) for step in range(len(lines))]
    assert {1, 2} == set(ranks_used(run))
