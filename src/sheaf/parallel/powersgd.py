"""PowerSGD: a matrix of gradients summed as the product of two thin ones (Vogels, Karimireddy and Jaggi 2019).

M_w is rank w's gradient with what it has kept; S = Σ M_w is wanted. One step of the power method from the basis Q of
the step before (n, r): P = Σ M_w·Q, made orthonormal, P̂; Q = Σ M_wᵀ·P̂; then P̂·Qᵀ = P̂·P̂ᵀ·S is taken for S. Both
sums are fp32 all-reduces and all else is computed from them by every rank alike, so all have the same bits. A rank
keeps M_w − P̂·P̂ᵀ·M_w for the next step: the sum of what is kept is what the step lacks, exactly. Vectors, and matrices
that are too small for it to pay, are summed as they are.

P is made orthonormal by Householder's QR in fp32, which needs no care where gradients are of lower rank or zero: any
orthonormal completion gives the same product. The first basis is random, from a fixed seed.

Cost: r·(m + n) numbers for a matrix (m, n), of them 2·(N−1)/N times their bytes from every rank, two messages a bucket;
8·m·n·r FLOP and some six passes over the matrix. Memory: 4 bytes a weight for what is kept, and the bases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sheaf.parallel.wire import Wire

PAYS = 2  # times fewer numbers, at least


class LowRankSum:
    """Of one bucket. kept: what this rank has still to send. bases: by number of the shape, the same on all ranks."""

    def __init__(self, flat: Tensor, shapes: Sequence[tuple[int, ...]], rank: int) -> None:
        self.kept: Tensor | None = torch.zeros_like(flat)
        self.bases: dict[int, Tensor] = {}
        self._matrices: list[tuple[slice, tuple[int, ...]]] = []
        self._plain: list[slice] = []
        start = 0
        for number, shape in enumerate(shapes):
            span = slice(start, start + torch.Size(shape).numel())
            start = span.stop
            if len(shape) == 2 and PAYS * rank * sum(shape) <= shape[0] * shape[1]:
                self._matrices.append((span, shape))
                random = torch.Generator().manual_seed(number)
                self.bases[number] = torch.randn(shape[1], rank, generator=random).to(flat.device)
            else:
                self._plain.append(span)

    def __call__(self, flat: Tensor, wire: Wire) -> None:
        """flat: fp32, the gradients end to end; becomes what is taken for their sum."""
        assert self.kept is not None
        flat += self.kept
        matrices = [flat[span].view(shape) for span, shape in self._matrices]
        kept = [self.kept[span].view(shape) for span, shape in self._matrices]
        bases, plain = list(self.bases.values()), [flat[span] for span in self._plain]
        thin = [matrix @ basis for matrix, basis in zip(matrices, bases, strict=True)]
        _sum(wire, [*thin, *plain])
        thin = [torch.linalg.qr(one).Q for one in thin]
        for matrix, one, basis, rest in zip(matrices, thin, bases, kept, strict=True):
            torch.mm(matrix.T, one, out=basis)
            torch.addmm(matrix, one, basis.T, alpha=-1, out=rest)
        _sum(wire, bases)
        for matrix, one, basis in zip(matrices, thin, bases, strict=True):
            torch.mm(one, basis.T, out=matrix)


def _sum(wire: Wire, tensors: Sequence[Tensor]) -> None:
    """Each becomes its sum over ranks, all in one message."""
    if tensors:
        flat = torch.cat([one.flatten() for one in tensors])
        wire.all_reduce(flat)
        for one, part in zip(tensors, flat.split([one.numel() for one in tensors]), strict=True):
            one.copy_(part.view(one.shape))
