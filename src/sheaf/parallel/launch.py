"""Start the ranks of a run on this machine, watch them, and say which one failed, and how.

N processes of a module, told by the variables that torchrun would set who they are; they find each other through a file
in the run's folder and talk over the loopback interface alone. torchrun's own agent is not used: its rendezvous keeps
a store that listens on every interface and unpickles what is written there, which lets anyone who reaches the port
run code as the user. (Several machines: start `sheaf.train.worker` with torchrun yourself, on a network you trust.)

One call is one start; `train.supervise` starts again. When one rank dies the others soon follow, because their next
collective could never finish; ranks that hang are found by `stuck`. Ranks have process groups of their own, and a
group is killed whole. Ctrl-C reaches only this process, which asks the ranks to stop. Cost: twenty looks a second.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sheaf.errors import Interrupted
from sheaf.parallel.forker import Forker
from sheaf.parallel.pulse import BOARD, Board, Patience
from sheaf.parallel.ranks import STORE, PeerLost, threads_for
from sheaf.parallel.stuck import Stuck, Watch
from sheaf.processes import SIGNALS, StopSignals

STOP_SECONDS = 600.0  # a rank that the user asked to stop finishes its step and writes a checkpoint
FAILURE_SECONDS = 5.0  # what ranks have after another one failed: time to say why, if the cause was theirs
POLL_SECONDS = 0.05
STORE_NAME = ".ranks-"
STOPPED = {128 + number for number in SIGNALS}  # exit codes of a rank that was asked to stop, and did so in order
CRASH = ""  # the kind of the last words of a rank that failed by an error without a name of ours
TORCHRUNS = ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class Failed:
    """The rank that failed on its own. code: its exit code; a negative one is the signal that killed it. step: how
    many it had done, -1 before it knew. words: what it left to say, if anything. stuck: all that hung, when that is
    why ranks were killed. lost: all ranks that somebody else killed. out_of_memory: the kernel has killed a process
    meanwhile because memory had run out."""

    rank: int
    code: int
    step: int = -1
    words: dict[str, Any] | None = None
    stuck: tuple[Stuck, ...] = ()
    lost: tuple[int, ...] = ()
    out_of_memory: bool = False


@dataclass(frozen=True)
class Ended:
    """How the ranks ended. signal: the one that stopped this process, or 0. failed: why they ended, if not well. late:
    all were well, and had been given no more time."""

    signal: int = 0
    failed: Failed | None = None
    late: bool = False


def forker(module: str, imports: Sequence[str], ranks: int) -> Forker:
    """What starts the ranks of `run_ranks`: about so many, which run this module and have imported these."""
    return Forker(module, imports, _common_environment(ranks))


def run_ranks(
    forker: Forker,
    arguments: Sequence[str],
    slots: Sequence[int],
    folder: Path,
    *,
    signals: StopSignals,
    patience: Patience,
    moved: Callable[[int], None] = lambda _: None,
    within: float = math.inf,
) -> Ended:
    """Run the forker's module with these arguments as the ranks 0 … and wait for their end.

    slots: a rank's LOCAL_RANK, which is the device it takes; not all numbers need be there. folder: of the run, held
    by this process; the file through which the ranks meet lies there meanwhile. signals: of this process, which stop
    the ranks in order. moved: called once, with the steps they began from, when these ranks have made their first step.
    within: seconds after whose end they are killed, and have failed.
    """
    for left in folder.glob(f"{STORE_NAME}*"):  # of a launcher that was killed
        left.unlink(missing_ok=True)
    deadline = time.monotonic() + within
    store = folder.resolve() / f"{STORE_NAME}{uuid.uuid4().hex}"
    with Board(len(slots)) as board:
        try:
            pids: list[int] = []
            for rank, slot in enumerate(slots):
                environment = _environment(rank, len(slots), slot, store)
                pids.append(forker.start(rank, environment, list(arguments), BOARD, board.descriptors(rank)))
            return _watch(forker, pids, board, Watch(board, patience), signals, moved, deadline)
        finally:
            forker.kill()
            store.unlink(missing_ok=True)


def run_once(forker: Forker, arguments: Sequence[str], ranks: int, folder: Path, *, within: float = math.inf) -> Ended:
    """`run_ranks` for ranks that give no signs of life; a second signal raises KeyboardInterrupt."""
    with StopSignals(patient=False) as signals:
        return run_ranks(
            forker, arguments, range(ranks), folder, signals=signals, patience=Patience(math.inf), within=within
        )


def _common_environment(ranks: int) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in TORCHRUNS} | {
        "OMP_NUM_THREADS": str(threads_for(ranks)),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),  # the same modules as here
    }


def _environment(rank: int, ranks: int, slot: int, store: Path) -> dict[str, str]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(slot), "WORLD_SIZE": str(ranks), STORE: str(store)}
    return _common_environment(ranks) | own


def _watch(
    forker: Forker,
    pids: Sequence[int],
    board: Board,
    watch: Watch,
    signals: StopSignals,
    moved: Callable[[int], None],
    deadline: float,
) -> Ended:
    """Wait for the end of all ranks, or for the end of our patience with them."""
    asked, told, stuck = False, False, list[Stuck]()
    killed_before = memory_kills()
    while living := {rank: pid for rank, pid in enumerate(pids) if forker.code(pid) is None}:
        now = time.monotonic()
        if signals.received and not asked:
            asked, deadline = True, min(deadline, now + STOP_SECONDS)
            for pid in living.values():
                os.kill(pid, signal.SIGTERM)
        if {forker.code(pid) for pid in pids} - {None, 0, *STOPPED}:
            deadline = min(deadline, now + FAILURE_SECONDS)
        elif stuck := watch.look(living):
            break
        if not told and watch.reached > watch.began >= 0:
            told = True
            moved(watch.began)
        if now > deadline:
            break
        time.sleep(POLL_SECONDS)
    codes = {rank: forker.code(pid) for rank, pid in enumerate(pids)}
    if not any(code != 0 for code in codes.values()):
        return Ended()  # even if a signal came: the run was just finished
    if signals.received:
        return Ended(signal=signals.received)
    words = {rank: board.last_words(rank) for rank in codes}
    if not stuck and not any(codes.values()):
        return Ended(late=True)
    rank = stuck[0].rank if stuck else blamed(codes, words)
    failed = Failed(
        rank,
        codes[rank] or 0,
        board.sign(rank).step,
        words[rank],
        tuple(stuck),
        tuple(rank for rank, code in codes.items() if (code or 0) < 0),
        memory_kills() > killed_before,
    )
    return Ended(failed=failed)


def blamed(codes: Mapping[int, int | None], words: Mapping[int, dict[str, Any] | None]) -> int:
    """The rank that was the cause. Its peers fail too: with PeerLost, or by whatever a broken collective raises; and
    those that a stop reached end in order."""

    def innocence(rank: int) -> tuple[int, int]:
        code, kind = codes[rank] or 0, (words[rank] or {"kind": None})["kind"]
        if code < 0:
            return 0, rank
        if kind is None:
            return (5 if code in STOPPED else 3), rank
        return {CRASH: 2, PeerLost.__name__: 4, Interrupted.__name__: 5}.get(kind, 1), rank

    return min((rank for rank, code in codes.items() if code), key=innocence)


def memory_kills() -> int:
    """How many processes the kernel has killed because memory had run out; 0 where it does not say."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return 0
