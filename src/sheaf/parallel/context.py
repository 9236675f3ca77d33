"""Context parallel: each rank computes a stretch of the positions of every sample, for sequences too long for one.

All but attention looks at one position at a time. Attention is given to the ranks by heads instead: an exchange turns
(all heads, some positions) into (some heads, all positions), each rank attends with its heads over whole sequences,
with the very operator that one process uses, and an exchange turns back (DeepSpeed-Ulysses, Jacobs et al. 2023). So
documents, windows and packing are exactly what they are on one rank, and every rank has the same work, wherever the
documents end; a ring over stretches of the keys would have neither. Its bound is the number of key-value heads.

Cost, a block: four exchanges forward (q, k, v, out) and four backward, each (N−1)/N of a rank's part. Activations and
the residual stream: 1/N each.
"""

from __future__ import annotations

from torch import Tensor

from sheaf.model.attention import attend
from sheaf.model.decoder import Decoder
from sheaf.parallel.collectives import exchange, use
from sheaf.parallel.mesh import Group

HEADS, POSITIONS = 1, 2  # dimensions of (b, h, t, …)


def split_attention(model: Decoder, group: Group) -> None:
    """Let the attention of every block exchange positions for heads with the other ranks."""
    name = use(group)

    def attend_together(q_bhtgd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor, starts_bt: Tensor) -> Tensor:
        q, k, v = (exchange(x, HEADS, POSITIONS, name) for x in (q_bhtgd, k_bhtd, v_bhtd))
        return exchange(attend(q, k, v, starts_bt), POSITIONS, HEADS, name)

    for _, block in model.model.held():
        block.self_attn.attend = attend_together
