"""Schedule-free AdamW: no decay of the rate; an average of the iterates takes its place.

Defazio et al. 2024 (arXiv 2405.15682), algorithm 1. Three sequences: z makes the steps, x is its weighted mean and is
what evaluation and everybody else gets, y = (1-β₁)z + β₁x is where gradients are taken. Between steps the parameters
hold y, and x follows from y and z, so the state is two tensors a weight, as with AdamW (8 bytes). Purely elementwise.

    v ← β₂v + (1-β₂)g²;   d = g / (√(v/(1-β₂ᵗ)) + ε) + λy
    z ← z - γd;   c = γ² / Σγ²;   x ← (1-c)x + cz

Written for y: y ← (1-c)y + cz - γ(1 - β₁(1-c))d with the z before its step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-8


@torch.no_grad()
def schedule_free_step(
    y: Sequence[Tensor],
    gradients: Sequence[Tensor],
    z: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    updates: int,
    share: float,
) -> None:
    """Update y, z and squares in place; aligned by position, fp32. updates: made before this one. share: c above."""
    root = math.sqrt(1 - betas[1] ** (updates + 1))
    for weight, gradient, iterate, square in zip(y, gradients, z, squares, strict=True):
        square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        direction = gradient.div(square.sqrt().div_(root).add_(EPSILON))
        if weight_decay:
            direction.add_(weight, alpha=weight_decay)
        weight.lerp_(iterate, share).add_(direction, alpha=-rate * (1 - betas[0] * (1 - share)))
        iterate.sub_(direction, alpha=rate)


@torch.no_grad()
def averaged(y: Tensor, z: Tensor, beta: float) -> Tensor:
    """x, of which y is the mean with z: a new tensor."""
    return y.lerp(z, 1 - 1 / beta)
