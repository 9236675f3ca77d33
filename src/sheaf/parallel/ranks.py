"""Who takes part in a run: this process' rank, how many there are, and the few small words they exchange.

One process is the same as a world of one: every method works and sends nothing. Several ranks know each other from the
environment (RANK, LOCAL_RANK, WORLD_SIZE) and meet through the file that `launch` names there, or as torchrun says
(MASTER_ADDR, MASTER_PORT) if that started them; they talk gloo on CPU and NCCL where there are GPUs. All collectives
here are called by every rank, in the same order, from the training thread. Cost: one message of a few bytes each; the
gradients have their own file, `data.py`.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from sheaf import allowance
from sheaf.errors import EnvironmentProblem, Interrupted
from sheaf.model.memory import ran_out
from sheaf.parallel.pulse import pulse

STORE = "SHEAF_RANKS"  # variable that `launch` sets: the file to meet at
TIMEOUT = datetime.timedelta(minutes=10)  # of one collective; a dead rank breaks the connection long before


class PeerLost(EnvironmentProblem):
    """Another rank went away in the middle of a collective. What became of it is known to the launcher."""


@contextlib.contextmanager
def peers() -> Generator[None]:
    """Around every collective: a broken connection becomes PeerLost."""
    try:
        with pulse.waiting():
            yield
    except RuntimeError as error:  # gloo has no class of its own for it
        if ran_out(error):
            raise
        raise PeerLost("another rank went away", why=str(error).splitlines()[0]) from error


@dataclass(frozen=True)
class Ranks:
    """rank: 0 … world-1; rank 0 alone writes files. device: where this rank computes."""

    rank: int
    world: int
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with peers():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def from_first(self, values: Sequence[float]) -> list[float]:
        """Rank 0's values, on every rank."""
        return self.sum(values if self.rank == 0 else [0.0] * len(values))

    def rows(self, mine: Sequence[Sequence[float]], columns: int) -> list[list[float]]:
        """Everybody's rows of so many numbers, by rank. Two messages."""
        counts = self.sum([float(len(mine)) if rank == self.rank else 0.0 for rank in range(self.world)])
        before, total = int(sum(counts[: self.rank])), int(sum(counts))
        table = [0.0] * (total * columns)
        table[before * columns : (before + len(mine)) * columns] = [float(value) for row in mine for value in row]
        table = self.sum(table)
        return [table[at : at + columns] for at in range(0, total * columns, columns)]

    def hosts(self) -> list[int]:
        """By rank, a number that ranks share which reach each other without a network: on one boot of a kernel, in one
        network namespace."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name = f"{boot} {Path('/proc/self/ns/net').stat().st_ino}"
        digest = hashlib.blake2b(name.encode(), digest_size=6).digest()
        mine = float(int.from_bytes(digest, "little"))  # 48 bits: exact as a float
        return [int(one) for one in self.sum([mine if rank == self.rank else 0.0 for rank in range(self.world)])]


def alone() -> Ranks:
    """A world of one, on the first GPU if there is one."""
    return Ranks(0, 1, _device(0))


@contextlib.contextmanager
def join() -> Generator[Ranks]:
    """Enter the process group that the environment describes; leave it at the end.

    Raises EnvironmentProblem if a GPU machine has fewer GPUs than local ranks.
    """
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    device = _device(local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if STORE in os.environ:
        store = dist.FileStore(os.environ[STORE], world)
    else:
        store, _, _ = next(dist.rendezvous("env://", rank, world))
    store.set_timeout(TIMEOUT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        yield Ranks(rank, world, device)
    except Interrupted:  # all stop in order, after the same step
        _leave_together(store, rank, world)
        raise
    else:
        _leave_together(store, rank, world)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def alone_or_joined() -> Generator[Ranks]:
    """The ranks that a launcher has started, of which this is one."""
    if os.environ["WORLD_SIZE"] == "1":
        yield alone()
    else:
        with join() as ranks:
            yield ranks


def _leave_together(store: dist.Store, rank: int, world: int) -> None:
    """Wait until all ranks have come to the end: gloo lets a slow one fail in the last collective if the connection is
    closed by one that has all it wants."""
    names = [f"left/{each}" for each in range(world)]
    store.set(names[rank], "")
    with contextlib.suppress(RuntimeError):  # the store went with the rank that kept it: then all have come
        store.wait(names)


def _device(local: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise EnvironmentProblem(
            "more ranks than GPUs",
            why=f"local rank {local}, but only {torch.cuda.device_count()} GPUs",
            fix="lower --nproc, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on CPU",
        )
    return torch.device("cuda", local)


def threads_for(ranks: int) -> int:
    """Compute threads of each rank: OMP_NUM_THREADS if the user set it, else the cores shared out evenly."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else max(1, allowance.cores() // ranks)


def memory_for(ranks: int) -> float:
    """Bytes that each of so many ranks on this machine may have: of a GPU, or its share of what this process is
    allowed to use."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return allowance.memory() / ranks
