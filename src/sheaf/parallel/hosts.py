"""Sums of gradients where hosts hold several ranks each: inside a host first, then between hosts, then back.

A host is where ranks reach each other without a network: one boot of a kernel and one network namespace. The first rank
of a group on each host adds up, in fp32, what the others there have; these first ranks sum with each other, in whatever
way the recipe says; and each hands the sum to its host. So a link between hosts carries each gradient once for the
host, not once for each of its ranks: with L ranks on each of H hosts 2·(H−1)/H of the gradients from a host, where an
exchange among all sends about L times as much. What a lossy way keeps is kept by the first ranks alone.

Cost: all gradients in fp32 once in and once out of the first rank, inside each host.
"""

from __future__ import annotations

from torch import Tensor

from sheaf.parallel.mesh import Hosts
from sheaf.parallel.reduce import BucketSum
from sheaf.parallel.wire import Wire


class HostSum:
    """Of one bucket. between: what sums between hosts; used on the first rank of each."""

    def __init__(self, hosts: Hosts, between: BucketSum) -> None:
        is_first = hosts.between is not None
        self.hosts, self._between = hosts, between if is_first else None
        self.kept: Tensor | None = between.kept if is_first else None
        self.bases: dict[int, Tensor] = between.bases if is_first else {}

    def __call__(self, flat: Tensor, wire: Wire) -> None:
        inside = Wire(self.hosts.inside, wire.moved)
        if inside.group.size > 1:
            inside.to_first(flat)
        if self._between is not None and self.hosts.between is not None:
            self._between(flat, Wire(self.hosts.between, wire.moved))
        if inside.group.size > 1:
            inside.from_first(flat)
