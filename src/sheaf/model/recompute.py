"""Activation checkpointing: compute a block's activations again in the backward instead of keeping them.

"none" keeps all. "full" keeps a block's input only, for one more forward (Chen et al. 2016): activations fall to one
(b, t, d) tensor a block, a step takes about a third longer. "selective" keeps what is dear to compute and cheap to
hold, the outputs of the matrix products and of attention, and computes the rest again: norms, rotations, SiLU
(Korthikanti et al. 2022): about half the memory; a step takes a fifth longer on a processor where nothing is compiled
(`bench/memory.py`), and less where what is computed again is fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sheaf.model.families import Model

Recompute = Literal["none", "selective", "full"]
MODES: tuple[Recompute, ...] = ("none", "selective", "full")
# Time that a block takes longer, over its forward pass, as `bench/memory.py` measures it.
COST: dict[Recompute, float] = {"none": 0.0, "selective": 0.6, "full": 0.9}


def recompute_blocks(model: Model, modes: Sequence[Recompute]) -> None:
    """Let the blocks compute again in the backward what they do not keep. modes: of the blocks that are here, in their
    order. Before compiling and sharding."""
    for block, mode in zip(model.blocks(), modes, strict=True):
        block.forward = recomputing(block.forward, mode)


def recomputing(forward: Callable[..., Tensor], mode: Recompute) -> Callable[..., Tensor]:
    """A block's forward that keeps for its backward only what the mode says."""
    if mode == "none":
        return forward
    selective: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)}
    # Nothing in a block is random, so no state of generators is kept.
    return partial(
        checkpoint,
        forward,
        use_reentrant=False,
        preserve_rng_state=False,
        **(selective if mode == "selective" else {}),
    )


def _policy(_context: object, operator: object, *_: object, **__: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _kept() else CheckpointPolicy.PREFER_RECOMPUTE


def _kept() -> set[object]:
    aten = torch.ops.aten
    return {
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        torch.ops.sheaf.attend.default,
        torch.ops.sheaf.gather.default,
        torch.ops.sheaf.scatter_sum.default,
        torch.ops.sheaf.exchange.default,
    }
