"""How fast a run's ranks compute, and talk inside a host and between hosts: measured by themselves, before they train.

A group's sum of n bytes over N ranks takes about latency + 2·(N−1)/N · n / rate, rate being what each rank sends while
all send (ring all-reduce; Patarasuk and Yuan 2009). Two sizes give the two numbers. A rank computes with all others
computing beside it, as in a run. Two ranks are on one host if they see the same network interfaces of the same machine,
so containers count as hosts of their own: what talks through a wire does not talk through memory.

Cost: about a second, or four sums of 4 MiB over the slowest link if that is more.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from zlib import crc32

import torch
import torch.distributed as dist

from sheaf.parallel.ranks import TIMEOUT, Ranks, peers

SMALL_BYTES, LARGE_BYTES = 1 << 10, 1 << 22
TIMES = 3
COMPUTE_SECONDS = 0.3


@dataclass(frozen=True)
class Link:
    """bytes_per_second: what a rank sends while its whole group sends. latency: seconds of a sum of nearly nothing."""

    bytes_per_second: float
    latency: float

    def sum_seconds(self, size: float, ranks: int) -> float:
        """Of a sum of so many bytes over so many ranks."""
        return self.latency + 2 * self.part_seconds(size, ranks)

    def part_seconds(self, size: float, ranks: int) -> float:
        """Of gathering or scattering so many bytes, of which every rank has its part."""
        return size * (ranks - 1) / ranks / self.bytes_per_second


@dataclass(frozen=True)
class Machine:
    """flops: of a rank, in matrix products as the model makes them. host, hosts: the links inside a host and between
    hosts (the same where there is one host). host_ranks: on one host; 1 if hosts hold unequally many."""

    flops: float
    host: Link
    hosts: Link
    host_ranks: int


def measure(ranks: Ranks, rows: int, width: int, dtype: torch.dtype) -> Machine:
    """The same on all ranks. rows, width: of a matrix product that is like the model's. Called by every rank."""
    hosts = _hosts(ranks)
    number, places = hosts[ranks.rank], sorted(set(hosts))
    flops = 1 / max(ranks.rows([[1 / _flops(ranks, rows, width, dtype)]], 1))[0]
    inside = _groups([[r for r in range(ranks.world) if hosts[r] == host] for host in places])
    between = _groups([[hosts.index(host) for host in places]])
    mine, first = inside[places.index(number)], between[0]
    host = _slowest(ranks, _link(ranks, mine, hosts.count(number)))
    across = _slowest(ranks, _link(ranks, first, len(places)) if hosts.index(number) == ranks.rank else None)
    counts = {hosts.count(host) for host in places}
    blocks = hosts == sorted(hosts, key=hosts.index)  # neighbours have neighbouring numbers
    host_ranks = counts.pop() if len(counts) == 1 and blocks else 1
    if len(places) == 1:
        return Machine(flops, host, host, ranks.world)
    return Machine(flops, host if host_ranks > 1 else across, across, host_ranks)


def _flops(ranks: Ranks, rows: int, width: int, dtype: torch.dtype) -> float:
    a = torch.ones(rows, width, dtype=dtype, device=ranks.device)
    b = torch.ones(width, width, dtype=dtype, device=ranks.device)
    taken: list[float] = []
    ranks.sum([0.0])  # all at once
    while len(taken) < TIMES + 1 or sum(taken) < COMPUTE_SECONDS:
        start = time.perf_counter()
        (a.T @ (a @ b))[0, 0].item()  # the two kinds in a layer: by rows, and over them
        taken.append(time.perf_counter() - start)
    return 4 * rows * width * width / min(taken[1:])  # the first one finds its kernel; others may be disturbed


def _hosts(ranks: Ranks) -> list[int]:
    """For each rank a number of its host."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text() if boot.exists() else os.uname().nodename
    interfaces = Path("/proc/self/ns/net")
    network = interfaces.stat().st_ino if interfaces.exists() else 0
    return [int(row[0]) for row in ranks.rows([[crc32(f"{machine} {network}".encode())]], 1)]


def _groups(members: Sequence[Sequence[int]]) -> list[dist.ProcessGroup | None]:
    """Process groups, made by all ranks in one order; None for one rank."""
    made = [dist.new_group(list(some), timeout=TIMEOUT) if len(some) > 1 else None for some in members]
    return [one if isinstance(one, dist.ProcessGroup) else None for one in made]


def _link(ranks: Ranks, group: dist.ProcessGroup | None, size: int) -> Link | None:
    if group is None:
        return None
    small, large = (_seconds(ranks, group, some) for some in (SMALL_BYTES, LARGE_BYTES))
    return Link(2 * (size - 1) / size * LARGE_BYTES / max(large - small, 1e-9), small)


def _seconds(ranks: Ranks, group: dist.ProcessGroup, size: int) -> float:
    data = torch.zeros(size // 4, dtype=torch.float32, device=ranks.device)
    taken: list[float] = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        with peers():
            dist.all_reduce(data, group=group)
        data[0].item()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])  # the first one connects


def _slowest(ranks: Ranks, link: Link | None) -> Link:
    """Of all ranks that have one. A rank that is alone has none, and needs none."""
    rows = ranks.rows([list(astuple(link))] if link else [], 2)
    return Link(min((row[0] for row in rows), default=math.inf), max((row[1] for row in rows), default=0.0))
