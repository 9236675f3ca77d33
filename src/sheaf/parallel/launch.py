"""Start the ranks of a run on this machine, and say which one failed, and how.

N copies of a module, told by the variables that torchrun would set who they are; they find each other through a file
in the run's folder and talk over the loopback interface alone. torchrun's own agent is not used: its rendezvous keeps
a store that listens on every interface and unpickles what is written there, which lets anyone who reaches the port
run code as the user. (Several machines: start `sheaf.train.worker` with torchrun yourself, on a network you trust.)

There are no restarts: a run is resumed from its checkpoint instead, on as many ranks as there are then. When one rank
dies the others soon follow, because their next collective could never finish. Ranks have process groups of their own:
Ctrl-C reaches only this process, which asks them to stop. Cost: twenty looks a second.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sheaf.parallel.ranks import LAUNCHER, STORE, PeerLost, threads_for
from sheaf.processes import SIGNALS, StopSignals

STOP_SECONDS = 600.0  # a rank that the user asked to stop finishes its step and writes a checkpoint
FAILURE_SECONDS = 5.0  # what ranks have after another one failed: time to say why, if the cause was theirs
POLL_SECONDS = 0.05
STORE_NAME = ".ranks-"
STOPPED = {128 + number for number in SIGNALS}  # exit codes of a rank that was asked to stop, and did so in order
TORCHRUNS = ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class Ended:
    """How the ranks ended. signal: the one that stopped this process, or 0. failed: rank and exit code (a negative
    one is the signal that killed it) of the rank that failed on its own, or None."""

    signal: int = 0
    failed: tuple[int, int] | None = None


def run_ranks(module: str, arguments: Sequence[str], ranks: int, folder: Path) -> Ended:
    """Run `python -m module arguments` on this many ranks and wait; a second signal raises KeyboardInterrupt.

    folder: of the run, held by this process; the file through which the ranks meet lies there meanwhile.
    """
    for left in folder.glob(f"{STORE_NAME}*"):  # of a launcher that was killed
        left.unlink(missing_ok=True)
    store = folder.resolve() / f"{STORE_NAME}{uuid.uuid4().hex}"
    processes: list[subprocess.Popen[bytes]] = []
    with StopSignals(patient=False) as signals:
        try:
            for rank in range(ranks):
                processes.append(_start(module, arguments, _environment(rank, ranks, store)))
            return _watch(processes, signals)
        finally:
            for process in processes:
                _kill(process)
            store.unlink(missing_ok=True)


def _environment(rank: int, ranks: int, store: Path) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in TORCHRUNS} | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        STORE: str(store),
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads_for(ranks)),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),  # the same modules as here
    }


def _start(module: str, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # Their standard output goes to stderr: ours may be JSON.
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=environment, process_group=0)


def _watch(processes: Sequence[subprocess.Popen[bytes]], signals: StopSignals) -> Ended:
    """Wait for the end of all ranks, or for the end of our patience with them."""
    deadline, asked = math.inf, False
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if signals.received and not asked:
            asked, deadline = True, min(deadline, now + STOP_SECONDS)
            for process in processes:
                process.terminate()
        if any(process.returncode not in (None, 0, *STOPPED) for process in processes):
            deadline = min(deadline, now + FAILURE_SECONDS)
        if now > deadline:
            break
        time.sleep(POLL_SECONDS)
    codes = {rank: process.poll() or 0 for rank, process in enumerate(processes)}
    if not any(codes.values()) and all(process.returncode is not None for process in processes):
        return Ended()  # even if a signal came: the run was just finished
    if signals.received:
        return Ended(signal=signals.received)
    rank = min((rank for rank, code in codes.items() if code), key=lambda rank: _blame(codes[rank]))
    return Ended(failed=(rank, codes[rank]))


def _blame(code: int) -> int:
    """When one rank dies, its peers fail too, with the code of PeerLost."""
    if code < 0:
        return 0
    return 2 if code == PeerLost.exit_code else 1


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
