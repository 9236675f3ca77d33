"""The gradients of a model that is spread over ranks: summed over all that see other tokens, and their norm.

Which ranks a gradient is summed over depends on what its parameter is. A rank that holds the same piece of a parameter
as others has seen some of the tokens: the sum goes over data, shard and context. What tensor ranks hold alike (norms)
has seen some of the positions on each: over tensor too. What FSDP shards it sums itself. A tied embedding is held by
both ends of a pipeline: the sum of the two. Then every rank has exactly its pieces of the gradient of the global batch.

The norm counts each piece once: a rank adds its squares divided by the number of ranks that hold the same piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sheaf.model.pieces import Piece
from sheaf.parallel.buckets import Buckets
from sheaf.parallel.collectives import waiting
from sheaf.parallel.data import Gradients
from sheaf.parallel.local import is_sharded, local
from sheaf.parallel.mesh import SUMMED, Kind, Mesh, size_of
from sheaf.recipe import Communication

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Summed:
    """A parameter whose gradient this rank sums with others. place: this rank's among the `places` that keep what is
    not sent of it, -1 if it is none of them. first: number in the run of the first rank that sums it. kept, basis: as
    of `BucketSum`, if there is any."""

    name: str
    gradient: Tensor
    kept: Tensor | None
    basis: Tensor | None
    place: int
    places: int
    first: int


class GradientSums:
    """All gradients of one rank. A step is `expect`, its backward passes, `finish`, and `zero` before the next.

    Frozen parameters are not among them: they have no gradient, and nothing is sent for them."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        pieces: Mapping[str, Piece],
        mesh: Mesh,
        tied: bool,
        how: Communication,
        buckets: Buckets,
    ) -> None:
        """parameters: those of this rank that learn, by name. tied: whether the ends of a pipeline share
        the embedding."""
        layout = mesh.layout
        self.mesh, self._bucket_bytes = mesh, buckets.bytes
        self.sharded = {name: p for name, p in parameters.items() if is_sharded(p)}
        whole = {name: p for name, p in parameters.items() if not is_sharded(p)}
        if layout.pipeline > 1:  # a checkpoint has one order, not one of each stage: so it is not looked for there
            buckets = replace(buckets, order=buckets.order or tuple(reversed(list(parameters))))
        by_kind: dict[Kind, dict[str, nn.Parameter]] = {}
        for name, parameter in whole.items():
            kind: Kind = "alike" if layout.tensor > 1 and pieces[name].is_whole else "cut"
            if tied and layout.pipeline > 1 and name == EMBEDDING:
                kind = "tied"
            by_kind.setdefault(kind, {})[name] = parameter
        self.ends = mesh.ends() if tied and layout.pipeline > 1 else None
        # The tied embedding lies at two ends, so its squares count half.
        self.buckets = [
            (
                Gradients(some, mesh.sums(kind), how, buckets, mesh.hosts(kind)),
                size_of(layout, SUMMED[kind]) * (2 if kind == "tied" else 1),
            )
            for kind, some in by_kind.items()
        ]
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

    def summed(self) -> Iterator[Summed]:
        """Every parameter but those that are sharded."""
        for gradients, _ in self.buckets:
            places, first = gradients.places, gradients.group.members[0]
            for name, gradient, kept, basis in gradients.parts():
                place, all_places = gradients.place, places
                if self._is_tied(name) and self.ends is not None:
                    place, all_places = place + places * self.ends.rank, places * self.ends.size
                yield Summed(name, gradient, kept, basis, place if gradients.place >= 0 else -1, all_places, first)

    @property
    def buckets_now(self) -> Buckets:
        """As a run that goes on in this layout is to have them. Called by every rank."""
        return Buckets(self._bucket_bytes, tuple(name for gradients, _ in self.buckets for name in gradients.order()))

    def forget(self) -> None:
        """Of what was kept in the steps so far: all."""
        for gradients, _ in self.buckets:
            gradients.forget()

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


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise AssertionError("every parameter has a gradient after a step's passes")
    return parameter.grad
