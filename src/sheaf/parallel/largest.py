"""Only the largest of the gradients are summed, and the rest is kept until it has grown (Aji and Heafield 2017; with
what is kept, Stich, Cordonnier and Jaggi 2018).

A bucket is cut into blocks of 1,024 numbers, and of each block a rank sends the k largest magnitudes, k = 1,024·share,
as bf16 with their places in the block: 4 bytes each, as many for every block and rank, so the message has a fixed size
and choosing is one vectorised call. A block sends something in every step, however small its numbers are beside those
of others; per block, as for the whole, ‖x − C(x)‖² ≤ (1 − share)·‖x‖². A rank keeps what it did not send and what bf16
rounded away, so the sum of what is kept is what the step lacks. All ranks add the same numbers in the order of ranks.

Cost: 4·share bytes a weight to each of the N−1 others, one message a bucket: it grows with the number of ranks, unlike
other ways. Memory: 4 bytes a weight for what is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sheaf.parallel.wire import Wire

BLOCK = 1024  # places in it fit into 2 bytes


class LargestSum:
    """Of one bucket. kept: what this rank has still to send."""

    def __init__(self, flat: Tensor, share: float) -> None:
        self.kept: Tensor | None = torch.zeros_like(flat)
        self.bases: dict[int, Tensor] = {}
        self._most = max(1, round(share * BLOCK))

    def __call__(self, flat: Tensor, wire: Wire) -> None:
        """flat: fp32, (a multiple of BLOCK,); becomes what is taken for the sum."""
        assert self.kept is not None
        flat += self.kept
        blocks, kept = flat.view(-1, BLOCK), self.kept.view(-1, BLOCK)
        places = blocks.abs().topk(self._most, dim=1, sorted=False).indices
        values = blocks.gather(1, places).to(torch.bfloat16)
        kept.copy_(blocks)
        kept.scatter_add_(1, places, -values.float())
        numbers = torch.stack([values.view(torch.int16), places.to(torch.int16)])
        everyone = wire.gather(numbers.view(torch.uint8).flatten()).view(torch.int16)
        blocks.zero_()
        for values_then_places in everyone.view(wire.group.size, *numbers.shape):
            blocks.scatter_add_(
                1, values_then_places[1].to(torch.int64), values_then_places[0].view(torch.bfloat16).float()
            )
