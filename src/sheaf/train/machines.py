"""Train on several machines by the same command on each: torchrun joins them, and restarts them together.

The machine that the rendezvous names prepares the corpus and makes the run; the others learn from the ranks where it
lies, on a disk that all reach under the same path. What a node needs to know beyond that, it has in its command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sheaf.errors import EnvironmentProblem, UsageError
from sheaf.processes import StopSignals
from sheaf.recipe import Recipe
from sheaf.train.worker import UNKNOWN

POLL_SECONDS, KNOCK_SECONDS = 0.1, 1.0
# Bound to this process' life, as its ranks are to its: nothing is left behind when somebody kills this one.
TORCHRUN = """
from sheaf.processes import die_with_parent
die_with_parent({parent})
from torch.distributed.run import main
main()
"""
LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Machines:
    """number: "N" or "FEWEST:MOST" machines. rendezvous: "HOST:PORT". nproc: ranks of each. here_is_host: whether this
    machine is that host."""

    number: str
    rendezvous: str
    nproc: int
    here_is_host: bool

    @staticmethod
    def of(number: str | None, rendezvous: str | None, nproc: int) -> Machines | None:
        """From a command's options; None without them. Raises UsageError, or EnvironmentProblem: a host unknown."""
        if number is None and rendezvous is None:
            return None
        if number is None or rendezvous is None:
            raise UsageError("--nnodes and --rdzv go together", fix="such as --nnodes 2 --rdzv node0.internal:29500")
        parts = number.split(":")
        right = len(parts) <= 2 and all(part.isdecimal() and int(part) > 0 for part in parts)
        if not right or int(parts[0]) > int(parts[-1]):
            raise UsageError(f"--nnodes {number} is no number of machines", fix="such as 2, or 1:2 for one or two")
        host, _, port = rendezvous.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"--rdzv {rendezvous} is no host and port", fix="such as node0.internal:29500")
        return Machines(number, rendezvous, nproc, _is_here(host.strip("[]")))

    @property
    def ranks(self) -> int:
        """Of all machines, if all are there."""
        return self.nproc * int(self.number.rpartition(":")[2])

    def train(self, folder: Path | None, recipe: Recipe) -> None:
        """Be one of the machines of a run, until all have ended. folder: of the run; None where another knows it.

        Raises Interrupted after a signal, EnvironmentProblem if torchrun did not end well: ranks say why on stderr.
        """
        if not self.here_is_host:
            self._wait_for_host()
        signalled, code = _wait(self._command(folder, recipe))
        if signalled is not None:
            from sheaf.train.stopped import interrupted  # it loads torch, which only torchrun's processes need

            raise interrupted(folder or Path("RUN"), signalled)
        if code:
            raise EnvironmentProblem(
                "the ranks of this machine did not end well",
                where=str(folder or ""),
                why=f"torchrun ended with exit code {code}; see above what the ranks said",
                fix="`sheaf resume RUN` with the same --nnodes and --rdzv on each machine goes on from the checkpoint",
            )

    def _wait_for_host(self) -> None:
        """Until it listens: it prepares first, which may take hours."""
        host, _, port = self.rendezvous.rpartition(":")
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()
                return
            time.sleep(KNOCK_SECONDS)

    def _address(self) -> str:
        """At which the others reach this machine: from its name torchrun would guess, often wrongly."""
        host, _, port = self.rendezvous.rpartition(":")
        if self.here_is_host:
            return host.strip("[]")
        with socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS) as there:
            return str(there.getsockname()[0])

    def _command(self, folder: Path | None, recipe: Recipe) -> list[str]:
        options = {
            "nnodes": self.number,
            "nproc-per-node": self.nproc,
            "rdzv-backend": "c10d",
            "rdzv-endpoint": self.rendezvous,
            "rdzv-id": recipe.name,
            "rdzv-conf": f"is_host={str(self.here_is_host).lower()}",
            "local-addr": self._address(),
            "max-restarts": recipe.train.restarts.most,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        worker = ["-m", "sheaf.train.worker", UNKNOWN if folder is None else str(folder)]
        return [sys.executable, "-c", TORCHRUN.format(parent=os.getpid()), *words, *worker]


def _wait(command: Sequence[str]) -> tuple[int | None, int]:
    """Run it to its end: the signal that this process got meanwhile, which stops it in order, and its exit code."""
    # Without it, an agent that was the first in one round and is not in the next keeps to the store of the old one.
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **os.environ}
    with StopSignals(patient=False) as signals:
        agent = subprocess.Popen(command, env=environment, start_new_session=True)
        asked = False
        try:
            while agent.poll() is None:
                if signals.received and not asked:
                    asked = True
                    agent.send_signal(signal.SIGTERM)
                time.sleep(POLL_SECONDS)
        finally:
            agent.kill()
    return signals.received, agent.returncode


def _is_here(host: str) -> bool:
    if host in (*LOCAL, socket.gethostname(), socket.getfqdn()):
        return True
    try:
        theirs = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise EnvironmentProblem(f"the host '{host}' of the rendezvous is not known here", why=str(error)) from error
    mine = {address.address.partition("%")[0] for some in psutil.net_if_addrs().values() for address in some}
    return bool(theirs & mine)
