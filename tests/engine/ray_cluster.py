"""A Ray cluster of several nodes on the loopback device, whose nodes can be killed like machines that lose power."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

STORE_BYTES = 80 << 20
# Read when Ray is imported: bind to 127.0.0.1, send nothing to anyone, ask for a token of our own.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5eaf" * 16,
}


class Nodes:
    """A head without CPUs, where drivers join, and nodes of one CPU each."""

    def __init__(self, cluster: Any, temporary: str) -> None:
        self._cluster, self._temporary = cluster, temporary
        self.address: str = cluster.address
        self.nodes: list[Any] = []

    def add(self, **environment: str) -> Any:
        """environment: what is set where the node is started."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            how = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "temp_dir": self._temporary}
            node = patiently(lambda: self._cluster.add_node(**how))
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """SIGKILL to everything that runs there, sandboxes of parsers included."""
        self.nodes.remove(node)
        running = [info.process.pid for infos in node.all_processes.values() for info in infos]
        for process in [p for pid in running for p in _tree(pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # a parser may just have ended by itself
                process.send_signal(signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 seconds to start, and no say in it: on a busy machine that is not always enough."""
    for _ in range(2):
        with contextlib.suppress(Exception):  # it raises nothing narrower
            return start()
    return start()


def _tree(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


@contextmanager
def cluster(nodes: int = 2) -> Generator[Nodes]:
    os.environ.update(ENVIRONMENT)
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        head = {
            **{"num_cpus": 0, "object_store_memory": STORE_BYTES, "temp_dir": temporary, "include_dashboard": False},
            "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 2},  # 15 s otherwise
        }
        # Ray notes the address of the newest cluster in a folder that it does not make, and that others may be using.
        os.environ["RAY_TMPDIR"] = temporary
        (Path(temporary) / "ray").mkdir(exist_ok=True)
        started = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            found = Nodes(started, temporary)
            for _ in range(nodes):
                found.add()
            os.environ["RAY_ADDRESS"] = found.address
            yield found
        finally:
            os.environ.pop("RAY_ADDRESS", None)
            started.shutdown()
            for name in (*ENVIRONMENT, "RAY_TMPDIR"):
                os.environ.pop(name)


def node_of(pid: int, nodes: Nodes) -> Any:
    """The node that a process runs on."""
    parents = {p.pid for p in psutil.Process(pid).parents()}
    found = [n for n in nodes.nodes if parents & {i.process.pid for i in n.all_processes["raylet"]}]
    assert len(found) == 1, "a task ran on no node of ours"
    return found[0]
