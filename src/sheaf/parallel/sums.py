"""The gradients of a model that is spread over ranks: summed over all that see other tokens, and their norm.

Which ranks a gradient is summed over depends on what its parameter is. A rank that holds the same piece of a parameter
as others has seen some of the tokens: the sum goes over data, shard and context. What tensor ranks hold alike (norms)
has seen some of the positions on each: over tensor too. What FSDP shards it sums itself. A tied embedding is held by
both ends of a pipeline: the sum of the two. Then every rank has exactly its pieces of the gradient of the global batch.

The norm counts each piece once: a rank adds its squares divided by the number of ranks that hold the same piece.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sheaf.model.pieces import Piece
from sheaf.parallel.collectives import waiting
from sheaf.parallel.data import Gradients
from sheaf.parallel.mesh import Axis, Mesh, size_of
from sheaf.parallel.shard import is_sharded, local

EMBEDDING = "model.embed_tokens.weight"


class GradientSums:
    """All gradients of one rank. A step is `expect`, its backward passes, `finish`, and `zero` before the next.

    Frozen parameters are not among them: they have no gradient, and nothing is sent for them."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], pieces: Mapping[str, Piece], mesh: Mesh, tied: bool
    ) -> None:
        """parameters: those of this rank that learn, by name. tied: whether the ends of a pipeline share
        the embedding."""
        layout = mesh.layout
        self.mesh = mesh
        self.sharded = {name: p for name, p in parameters.items() if is_sharded(p)}
        whole = {name: p for name, p in parameters.items() if not is_sharded(p)}
        by_axes: dict[tuple[Axis, ...], list[nn.Parameter]] = {}
        alone: list[nn.Parameter] = []
        for name, parameter in whole.items():
            axes = _axes(layout.tensor > 1 and pieces[name].is_whole)
            if tied and layout.pipeline > 1 and name == EMBEDDING:
                alone.append(parameter)
            else:
                by_axes.setdefault(axes, []).append(parameter)
        self.buckets = [(Gradients(some, mesh.group(*axes)), size_of(layout, axes)) for axes, some in by_axes.items()]
        # The embedding's ends in buckets of its own, whose squares count half.
        self.ends = mesh.ends() if tied and layout.pipeline > 1 else None
        if alone:
            axes = _axes(False)
            self.buckets.append((Gradients(alone, mesh.group(*axes)), 2 * size_of(layout, axes)))
        self._tied = parameters.get(EMBEDDING) if self.ends is not None and self.ends.size > 1 else None

    def expect(self, passes: int) -> None:
        """The step has so many backward passes through every stage of this rank."""
        for bucket, _ in self.buckets:
            bucket.expect(passes)

    def finish(self) -> None:
        """Wait until all gradients are those of the global batch."""
        for bucket, _ in self.buckets:
            bucket.finish()
        if self._tied is not None and self.ends is not None:
            gradient = local(_gradient(self._tied))
            with waiting(gradient.nbytes):
                dist.all_reduce(gradient, group=self.ends.handle)

    def squares(self) -> Tensor:
        """This rank's share of the squared norm, float64: its sum over all ranks is that of the whole gradient."""
        parts = [
            torch.linalg.vector_norm(flat.flat).double().square() / copies
            for bucket, copies in self.buckets
            for flat in bucket.buckets
        ]
        for name, parameter in self.sharded.items():
            copies = size_of(self.mesh.layout, ("data", "context")) * (2 if self._is_tied(name) else 1)
            parts.append(torch.linalg.vector_norm(local(_gradient(parameter))).double().square() / copies)
        # None, where all that a rank holds is frozen.
        return sum(parts, torch.zeros((), dtype=torch.float64, device=self.mesh.ranks.device))

    def scale(self, factor: Tensor | float) -> None:
        for bucket, _ in self.buckets:
            bucket.scale(factor)
        for parameter in self.sharded.values():
            local(_gradient(parameter)).mul_(factor)

    def zero(self) -> None:
        for bucket, _ in self.buckets:
            bucket.zero()
        for parameter in self.sharded.values():
            parameter.grad = None

    def _is_tied(self, name: str) -> bool:
        return self.ends is not None and name == EMBEDDING


def _axes(over_tensor: bool) -> tuple[Axis, ...]:
    return ("data", "shard", "context", "tensor") if over_tensor else ("data", "shard", "context")


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise AssertionError("every parameter has a gradient after a step's passes")
    return parameter.grad
