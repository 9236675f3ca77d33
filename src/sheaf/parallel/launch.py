"""Start the ranks of a run on this machine with torchrun's machinery, and say which one failed, and how.

One agent in this process starts N copies of a module and watches them; they find each other over loopback. There are no
restarts: a run is resumed from its checkpoint instead, on as many ranks as there are then. When one rank dies the
others are stopped at once, because their next collective could never finish.
Cost: the agent polls ten times a second; ranks import torch in parallel (2 to 4 s).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sheaf.parallel.ranks import threads_for

SHUTDOWN_SECONDS = 600  # a rank that was asked to stop finishes its step and writes a checkpoint


@dataclass(frozen=True)
class Ended:
    """How the ranks ended. signal: the one that stopped this process, or 0. failed: rank and exit code (a negative
    one is the signal that killed it) of the rank that failed on its own, or None."""

    signal: int = 0
    failed: tuple[int, int] | None = None


def run_ranks(module: str, arguments: Sequence[str], ranks: int) -> Ended:
    """Run `python -m module arguments` on this many ranks and wait. Call from the main thread."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    environment = {
        "OMP_NUM_THREADS": str(threads_for(ranks)),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }
    with _environment(environment), _quiet():
        try:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
        except SignalException as error:
            return Ended(signal=int(error.sigval))
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            rank = min(codes, key=lambda r: _blame(codes[r]))
            return Ended(failed=(rank, codes[rank]))
    return Ended()


def _blame(code: int) -> int:
    """When one rank dies, its peers fail too, with exit code 1, and the agent ends the rest with SIGTERM."""
    if code == -signal.SIGTERM:
        return 2
    return 1 if code >= 0 else 0


@contextmanager
def _environment(values: dict[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _quiet() -> Generator[None]:
    """The agent logs every failure at length; ours is one clear error."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
