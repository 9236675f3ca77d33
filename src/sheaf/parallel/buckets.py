"""How gradients are laid into buckets: how large these are, from the measured link, and in which order, from a step.

A message costs α seconds whatever its size, and β bytes a second. Buckets of s bytes, of which c·s are sent, cost α·G/s
for all G bytes of gradients, and the last one, which no backward pass hides, c·s/β: together least at s = √(α·β·G/c).
That is rounded to a power of two between 1 and 64 MiB, on rank 0, for all. The order is that in which the first rank
of a group saw the gradients of its first step arrive, since a bucket leaves when its last gradient is there. Both are
written into checkpoints: lossy sums depend on which gradients share a block.

Cost: a dozen messages, of 3 MiB in all, before the first step of a run.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from sheaf.parallel.links import Link, link_over
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.reduce import share_sent
from sheaf.recipe import Communication

MIB = 2**20
LEAST, MOST = 1, 64  # MiB


@dataclass(frozen=True)
class Buckets:
    """bytes: of the gradients in one. order: names of parameters; what it does not name comes after it. Without an
    order one is found in the first step."""

    bytes: int = 16 * MIB
    order: tuple[str, ...] = ()


def measure(mesh: Mesh) -> Link | None:
    """The link over which gradients are summed, as rank 0 sees it; None where it sums with nobody. Called by all."""
    group = mesh.sums("cut")
    if group.handle is None:
        return None
    link = link_over(group.handle, group.size, mesh.ranks.device)
    return Link(*mesh.ranks.from_first(astuple(link)))


def chosen(link: Link, gradient_bytes: float, how: Communication, ranks: int) -> Buckets:
    """By the formula above."""
    best = math.sqrt(link.latency * link.bytes_per_second * gradient_bytes / share_sent(how, ranks))
    return Buckets(MIB * min(MOST, max(LEAST, 2 ** round(math.log2(max(best / MIB, 1e-3))))))
