"""Muon: momentum whose direction is orthogonalised, for the 2-D matrices inside a model.

M ← μM + (1-μ)G; update = 0.2·√max(rows, columns)·orth((1-μ)G + μM), where orth(USVᵀ) ≈ UVᵀ comes from five steps of a
quintic Newton–Schulz iteration (Jordan et al. 2024, kellerjordan.github.io/posts/muon). The factor gives the update
the root mean square of AdamW's, so that one learning rate and one weight decay serve both (Liu et al. 2025,
arXiv 2502.16982, section 2.2).

Cost a step for an m×n matrix, m ≤ n: 5·(4m²n + 2m³) flops, independent of the batch; state 4 bytes a weight. The
iteration runs in bf16 in a bf16 run (2.3 times as fast as fp32 on a CPU with AVX512-bf16, and its noise is below that
of the method) and in fp32 in an fp32 run, so that layouts stay comparable to 1e-4. torch.optim.Muon knows bf16 only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sheaf.model.config import ModelConfig

A, B, C = 3.4445, -4.7750, 2.0315  # steepest at zero; singular values end in about [0.7, 1.2]
ITERATIONS = 5
MOMENTUM = 0.95

Together = Callable[[Sequence[Tensor], Callable[[Tensor], Tensor]], list[Tensor]]


def orthogonalise(matrix: Tensor) -> Tensor:
    """About UVᵀ of matrix = USVᵀ. matrix: (rows, columns). Computed and returned in its dtype."""
    wide = matrix.size(0) <= matrix.size(1)
    x = matrix if wide else matrix.T
    x = x / torch.linalg.vector_norm(x).clamp(min=1e-7)  # the spectral norm is at most the Frobenius norm
    for _ in range(ITERATIONS):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.addmm(x, polynomial, x, beta=A)
    return x if wide else x.T


def muon_flops(rows: int, columns: int) -> float:
    """Of orthogonalising one matrix."""
    m, n = sorted((rows, columns))
    return 5.0 * (4 * m * m * n + 2 * m**3)


def muon_flops_of(config: ModelConfig) -> float:
    """Of orthogonalising all matrices in the layers once."""
    d, wide = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes = [(q, d), (kv, d), (kv, d), (d, q), (wide, d), (wide, d), (d, wide)]
    return config.num_hidden_layers * sum(muon_flops(*shape) for shape in shapes)


@torch.no_grad()
def muon_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    *,
    rates: Sequence[float],
    weight_decay: float,
    dtype: torch.dtype,
    together: Together,
    shapes: Sequence[tuple[int, ...]],
) -> None:
    """Update weights and momenta in place. All are 2-D, fp32, and aligned by position: perhaps pieces of matrices of
    the given shapes, of which `together` makes wholes (`parallel/matrices.py`)."""
    directions: list[Tensor] = []
    for gradient, momentum in zip(gradients, momenta, strict=True):
        momentum.lerp_(gradient, 1 - MOMENTUM)
        directions.append(gradient.lerp(momentum, MOMENTUM).to(dtype))
    updates = together(directions, orthogonalise)
    for weight, update, rate, shape in zip(weights, updates, rates, shapes, strict=True):
        weight.mul_(1 - rate * weight_decay)
        weight.add_(update, alpha=-rate * 0.2 * math.sqrt(max(shape)))


def each_alone(matrices: Sequence[Tensor], work: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """`together` where every matrix is whole here."""
    return [work(matrix) for matrix in matrices]
