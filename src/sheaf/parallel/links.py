"""How fast a run's ranks talk inside a host and between hosts: measured by themselves, before they train.

A group's sum of n bytes over N ranks takes about latency + 2·(N−1)/N · n / rate, rate being what each rank sends while
all send (ring all-reduce; Patarasuk and Yuan 2009). Two sizes give the two numbers. Hosts are those of `Ranks.hosts`.

Cost: less than a second, or three sums of 1 MiB over the slowest link if that is more.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from sheaf.parallel.ranks import TIMEOUT, Ranks, peers
from sheaf.parallel.rates import Rates

SMALL_BYTES, LARGE_BYTES = 1 << 10, 1 << 20
SMALL_TIMES, TIMES = 8, 3


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
    """rates: of a rank. host, hosts: the links inside a host and between hosts (the same where there is one host);
    hosts is the wire of a whole host. host_ranks: on one host; 1 if hosts hold unequally many."""

    rates: Rates
    host: Link
    hosts: Link
    host_ranks: int


def measure(ranks: Ranks, rates: Rates) -> Machine:
    """The same on all ranks. rates: how fast they compute, which the same on all is too. Called by every rank."""
    hosts = ranks.hosts()
    number, places = hosts[ranks.rank], sorted(set(hosts))
    inside = _groups([[r for r in range(ranks.world) if hosts[r] == host] for host in places])
    between = _groups([[hosts.index(host) for host in places]])
    mine, first = inside[places.index(number)], between[0]
    inner = None if mine is None else link_over(mine, hosts.count(number), ranks.device)
    is_first = hosts.index(number) == ranks.rank
    outer = link_over(first, len(places), ranks.device) if first is not None and is_first else None
    host, across = _slowest(ranks, inner), _slowest(ranks, outer)
    counts = {hosts.count(host) for host in places}
    blocks = hosts == sorted(hosts, key=hosts.index)  # neighbours have neighbouring numbers
    host_ranks = counts.pop() if len(counts) == 1 and blocks else 1
    if len(places) == 1:
        return Machine(rates, host, host, ranks.world)
    return Machine(rates, host if host_ranks > 1 else across, across, host_ranks)


def _groups(members: Sequence[Sequence[int]]) -> list[dist.ProcessGroup | None]:
    """Process groups, made by all ranks in one order; None for one rank."""
    made = [dist.new_group(list(some), timeout=TIMEOUT) if len(some) > 1 else None for some in members]
    return [one if isinstance(one, dist.ProcessGroup) else None for one in made]


def link_over(group: dist.ProcessGroup, size: int, device: torch.device) -> Link:
    """The link of a group of so many ranks, as this one sees it. Called by all of them."""
    _seconds(group, SMALL_BYTES, device)  # connects
    latency = statistics.median(_seconds(group, SMALL_BYTES, device) for _ in range(SMALL_TIMES))
    longer = min(_seconds(group, LARGE_BYTES, device) for _ in range(TIMES))
    return Link(2 * (size - 1) / size * LARGE_BYTES / max(longer - latency, 1e-6), latency)


def _seconds(group: dist.ProcessGroup, size: int, device: torch.device) -> float:
    data = torch.zeros(size // 4, dtype=torch.float32, device=device)
    start = time.perf_counter()
    with peers():
        dist.all_reduce(data, group=group)
        data[0].item()  # until it has arrived
    return time.perf_counter() - start


def _slowest(ranks: Ranks, link: Link | None) -> Link:
    """Of all ranks that have one. A rank that is alone has none, and needs none."""
    rows = ranks.rows([list(astuple(link))] if link else [], 2)
    return Link(min((row[0] for row in rows), default=math.inf), max((row[1] for row in rows), default=0.0))
