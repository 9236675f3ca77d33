"""Muon's matrices where no rank holds them whole, or where several hold the same.

An update is orthogonalised as a whole matrix. Each matrix has one owner among the ranks; the dearest go first to the
one with the least to do. The ranks that hold pieces of it send them to the owner, which computes, and sends back to
each its piece of the result; ranks that hold the same piece get it from one of them. So every matrix is orthogonalised
once, not once on every rank, and all replicas take the very same bits. Where links are so slow that gradients are
compressed, replicas share nothing: each orthogonalises all, from the same gradients.

Cost: the updates' pieces in the run's compute dtype, once to the owner and once back, where they are cut; the results
once round, where they are replicated. Computing is divided by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sheaf.model.pieces import Box, Piece
from sheaf.parallel.collectives import waiting
from sheaf.parallel.mesh import Group, Mesh

Whole = Callable[[Tensor], Tensor]  # of a whole matrix: the same shape


class Matrices:
    """The hidden matrices of one rank, in a fixed order. Made and called by every rank of a pipeline stage."""

    def __init__(self, pieces: Mapping[str, Piece], mesh: Mesh, *, share: bool = True) -> None:
        """share: whether replicas divide the matrices among themselves; else each computes all."""
        self.pieces, self.device = list(pieces.values()), mesh.ranks.device
        self.holders, self.replicas = mesh.group("shard", "tensor"), mesh.group("data", "context")
        if not share:
            self.replicas = Group(1, 0, (mesh.ranks.rank,))
        workers = self.holders.size * self.replicas.size
        owner = _assign([_cost(piece.shape) for piece in self.pieces], workers)
        self.replica = [one // self.holders.size for one in owner]  # by matrix: which replica computes it,
        self.holder = [one % self.holders.size for one in owner]  # and which of its ranks
        self.boxes = self._boxes()  # by holder, by matrix

    def apply(self, updates: Sequence[Tensor], work: Whole) -> list[Tensor]:
        """This rank's pieces of work(whole update), from its pieces of the updates. All have one dtype."""
        mine = [i for i, replica in enumerate(self.replica) if replica == self.replicas.rank]
        done = self._computed(mine, updates, work)
        if self.replicas.size == 1:
            return [done[i] for i in range(len(updates))]
        return self._shared(updates, done)

    def _computed(self, numbers: Sequence[int], updates: Sequence[Tensor], work: Whole) -> dict[int, Tensor]:
        """By number of the matrix, this rank's piece of the result."""
        if self.holders.size == 1:
            return {i: work(updates[i]) for i in numbers}
        here = self.holders.rank
        owned = [i for i in numbers if self.holder[i] == here]
        by_owner = [[i for i in numbers if self.holder[i] == h] for h in range(self.holders.size)]
        arrived = self._exchange(
            [[updates[i] for i in some] for some in by_owner],
            [[_size(self.boxes[h][i]) for i in owned] for h in range(self.holders.size)],
        )
        results: list[Tensor] = []
        for at, i in enumerate(owned):
            whole = updates[i].new_zeros(self.pieces[i].shape)
            for h in range(self.holders.size):
                whole[_slices(self.boxes[h][i])] = arrived[h][at]
            results.append(work(whole))
        back = self._exchange(
            [[results[at][_slices(self.boxes[h][i])] for at, i in enumerate(owned)] for h in range(self.holders.size)],
            [[self.pieces[i].size for i in some] for some in by_owner],
        )
        return {i: piece for h, some in enumerate(by_owner) for i, piece in zip(some, back[h], strict=True)}

    def _exchange(self, parts: list[list[Tensor]], sizes: list[list[tuple[int, ...]]]) -> list[list[Tensor]]:
        """parts: for each holder what it shall get. sizes: for each holder the shapes of what comes from it."""
        nothing = next((x for some in parts for x in some), torch.empty(0)).new_empty(0)
        flat = [torch.cat([nothing, *(x.reshape(-1) for x in some)]) for some in parts]
        counts = [sum(int(np.prod(size)) for size in some) for some in sizes]
        sent = torch.cat(flat)
        received = sent.new_empty(sum(counts))
        with waiting(sent.nbytes - flat[self.holders.rank].nbytes):
            dist.all_to_all_single(received, sent, counts, [len(x) for x in flat], group=self.holders.handle)
        return [_unpacked(x, some) for x, some in zip(received.split(counts), sizes, strict=True)]

    def _shared(self, updates: Sequence[Tensor], done: Mapping[int, Tensor]) -> list[Tensor]:
        """All results, from the replicas that computed them."""
        of = [[i for i in range(len(updates)) if self.replica[i] == r] for r in range(self.replicas.size)]
        counts = [sum(updates[i].numel() for i in some) for some in of]
        mine = updates[0].new_zeros(max(counts))
        if done:
            flat = torch.cat([done[i].reshape(-1) for i in of[self.replicas.rank]])
            mine[: len(flat)] = flat
        everyone = mine.new_empty(self.replicas.size * len(mine))
        with waiting(mine.nbytes * (self.replicas.size - 1)):
            dist.all_gather_single(everyone, mine, group=self.replicas.handle)
        found: dict[int, Tensor] = {}
        for some, row, count in zip(of, everyone.split(len(mine)), counts, strict=True):
            shapes = [tuple(updates[i].shape) for i in some]
            found.update(zip(some, _unpacked(row[:count], shapes), strict=True))
        return [found[i] for i in range(len(updates))]

    def _boxes(self) -> list[list[Box]]:
        if self.holders.size == 1:
            return [[piece.box for piece in self.pieces]]
        mine = torch.tensor([piece.box for piece in self.pieces], dtype=torch.int64, device=self.device).reshape(
            -1, 2, 2
        )
        everyone = mine.new_empty((self.holders.size * len(mine), 2, 2))
        with waiting(0):
            dist.all_gather_single(everyone, mine, group=self.holders.handle)
        return [
            [tuple((int(a), int(b)) for a, b in box) for box in boxes.tolist()] for boxes in everyone.split(len(mine))
        ]


def _unpacked(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    counts = [int(np.prod(shape)) for shape in shapes]
    return [x.view(shape) for x, shape in zip(flat.split(counts), shapes, strict=True)] if counts else []


def _assign(costs: Sequence[float], workers: int) -> list[int]:
    """Longest processing time first (Graham 1969): for each matrix its worker."""
    load, owner = [0.0] * workers, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner[i] = min(range(workers), key=lambda worker: (load[worker], worker))
        load[owner[i]] += costs[i]
    return owner


def _cost(shape: tuple[int, ...]) -> float:
    small, large = min(shape), max(shape)
    return float(small) * small * (4 * large + 2 * small)  # of one Newton-Schulz iteration, in FLOP


def _size(box: Box) -> tuple[int, ...]:
    return tuple(end - start for start, end in box)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, end) for start, end in box)
