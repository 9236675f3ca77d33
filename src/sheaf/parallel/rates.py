"""How fast a rank computes: the numbers that the cost of a step rests on, whoever found them.

A run's own ranks measure them (`train/probe.py`), with real blocks of the model; for machines that one does not have
they come from published figures (`forecast/machines.py`). Each is what is *reached*, norms, rotations and launches
included, so that dividing work by it gives seconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """FLOP/s in the matrix products of layers, in scores and values, in head and loss (the embedding with it), in the
    products of Muon; update: bytes/s that an optimiser reads and writes.

    Shares of a pass behind which something hides: data_hides the sums of gradients (the last backward's, here),
    shard_hides the gathering of weights. tensor_hides: share of what tensor ranks send that hides behind products."""

    layers: float
    attention: float
    head: float
    muon: float
    update: float
    data_hides: float = 2 / 3
    shard_hides: float = 0.0
    tensor_hides: float = 0.0

    @staticmethod
    def alike(flops: float, update: float = 1e12) -> Rates:
        """All products at one rate."""
        return Rates(flops, flops, flops, flops, update)
