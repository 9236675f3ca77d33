"""Where a rank stands in a layout, and with whom it shares what.

The ranks of a run form a grid with five axes, outermost first: pipeline, data, shard, context, tensor. Ranks that are
neighbours along the last axis have neighbouring numbers, so the axes that talk most stay inside one host. Along

    data      ranks hold the same weights and take other samples;
    shard     they take other samples too, and each keeps a part of the weights, gradients and optimiser state;
    context   they take other positions of the same samples;
    tensor    they hold other heads and columns of the same layers, and other tokens of the vocabulary;
    pipeline  they hold other layers.

A `Group` is the ranks that differ from this one in some of the axes only. Cost: one process group for each set of axes
that is asked for, made by all ranks together in the same order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from sheaf.parallel.ranks import TIMEOUT, Ranks
from sheaf.recipe import Layout

Axis = Literal["pipeline", "data", "shard", "context", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "shard", "context", "tensor")


@dataclass(frozen=True, eq=False)
class Group:
    """size: ranks in it. rank: this one's place, 0 … size-1. members: their numbers in the run. handle: of
    torch.distributed; None if this rank is alone in it."""

    size: int
    rank: int
    members: tuple[int, ...]
    handle: dist.ProcessGroup | None = field(repr=False, default=None)

    @property
    def name(self) -> str:
        """The same on all its ranks, and of no other group: custom operators know a group by it."""
        return "-".join(map(str, self.members))


class Mesh:
    """The grid of a layout's ranks, seen from one of them. Made by every rank at the same time."""

    def __init__(self, ranks: Ranks, layout: Layout) -> None:
        self.ranks, self.layout = ranks, layout
        self.shape: tuple[int, ...] = tuple(getattr(layout, axis) for axis in AXES)
        if math.prod(self.shape) != ranks.world:
            raise ValueError(f"{layout} is a layout of {math.prod(self.shape)} ranks, not of {ranks.world}")
        here = np.unravel_index(ranks.rank, self.shape)
        self.at: dict[Axis, int] = {axis: int(place) for axis, place in zip(AXES, here, strict=True)}
        self._handles: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
        self._numbers = np.arange(ranks.world).reshape(self.shape)
        self._groups = {axes: self._make(axes) for n in range(1, 6) for axes in itertools.combinations(AXES, n)}

    def group(self, *axes: Axis) -> Group:
        """This rank's group along these axes."""
        return self._groups[tuple(sorted(axes, key=AXES.index))]

    @cached_property
    def samples(self) -> Group:
        """Ranks along which the samples of a step are divided."""
        return self.group("data", "shard")

    @property
    def is_first_of_its_samples(self) -> bool:
        """Whether this rank speaks for its samples: of those that see the same, one does."""
        return not (self.at["context"] or self.at["tensor"] or self.at["pipeline"])

    @property
    def is_last_stage(self) -> bool:
        return self.at["pipeline"] == self.layout.pipeline - 1

    def grid(self, rows: tuple[Axis, ...], columns: tuple[Axis, ...]) -> NDArray[np.int64]:
        """Numbers of the ranks that differ from this one along these axes, as a table."""
        free = [AXES.index(axis) for axis in (*rows, *columns)]
        index = tuple(slice(None) if i in free else self.at[axis] for i, axis in enumerate(AXES))
        table = self._numbers[index]
        left = [i for i in range(len(AXES)) if i in free]
        return table.transpose([left.index(i) for i in free]).reshape(size_of(self.layout, rows), -1)

    def borders(self, stages: int) -> dict[tuple[int, bool], dist.ProcessGroup]:
        """For this rank's borders between stages, a group for each direction: (lower stage, forward) → group. Made by
        every rank at the same time; stage s is on the rank whose place in its pipeline is s mod their number."""
        mine: dict[tuple[int, bool], dist.ProcessGroup] = {}
        for line in self._numbers.reshape(self.layout.pipeline, -1).T:
            for stage in range(stages - 1):
                ends = sorted(int(line[s % len(line)]) for s in (stage, stage + 1))
                for forward in (True, False):
                    made = dist.new_group(ends, timeout=TIMEOUT)
                    if self.ranks.rank in ends and isinstance(made, dist.ProcessGroup):
                        mine[stage, forward] = made
        return mine

    def ends(self) -> Group:
        """The first and the last rank of this rank's pipeline, which share a tied embedding; this rank alone, if it is
        neither. Made by every rank at the same time."""
        found = Group(1, 0, (self.ranks.rank,))
        for line in self._numbers.reshape(self.layout.pipeline, -1).T.tolist():
            members = (line[0], line[-1])
            handle = self._process_group(members)
            if self.ranks.rank in members:
                found = Group(2, members.index(self.ranks.rank), members, handle)
        return found

    def _make(self, axes: tuple[Axis, ...]) -> Group:
        size = math.prod(getattr(self.layout, axis) for axis in axes)
        if size == 1:
            return Group(1, 0, (self.ranks.rank,))
        last = [AXES.index(axis) for axis in axes]
        rest = [i for i in range(len(AXES)) if i not in last]
        found: Group | None = None
        for row in np.transpose(self._numbers, rest + last).reshape(-1, size):
            members = tuple(row.tolist())
            handle = self._process_group(members)
            if self.ranks.rank in members:
                found = Group(size, members.index(self.ranks.rank), members, handle)
        if found is None:
            raise AssertionError("every rank is in one group along any axes")
        return found

    def _process_group(self, members: tuple[int, ...]) -> dist.ProcessGroup | None:
        """One for each set of ranks, however many axes lead to it. Every rank calls this, members or not."""
        if members not in self._handles:
            made = dist.new_group(list(members), group_desc="-".join(map(str, members)), timeout=TIMEOUT)
            self._handles[members] = made if isinstance(made, dist.ProcessGroup) else None
        return self._handles[members]


def size_of(layout: Layout, axes: Iterable[Axis] = AXES) -> int:
    """How many ranks the layout has along these axes."""
    return math.prod(getattr(layout, axis) for axis in axes)
