"""Where a rank stands in a layout, and with whom it shares what.

The ranks of a run form a grid with five axes, outermost first: pipeline, data, shard, context, tensor. Ranks that are
neighbours along the last axis have neighbouring numbers, so the axes that talk most stay inside one host. Along

    data      ranks hold the same weights and take other samples;
    shard     they take other samples too, and each keeps a part of the weights, gradients and optimiser state;
    context   they take other positions of the same samples;
    tensor    they hold other heads and columns of the same layers, and other tokens of the vocabulary;
    pipeline  they hold other layers.

A `Group` is the ranks that differ from this one in some of the axes only. Cost: one process group for each set of axes
that is asked for, and three for the sums of gradients, made by all ranks together in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch.distributed as dist

from sheaf.parallel.ranks import TIMEOUT, Ranks
from sheaf.recipe import Layout

Axis = Literal["pipeline", "data", "shard", "context", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "shard", "context", "tensor")
# Along which axes ranks talk, gradients aside.
ASKED: tuple[tuple[Axis, ...], ...] = (
    *(("pipeline",), ("shard",), ("context",), ("tensor",)),
    *(("data", "shard"), ("data", "context"), ("shard", "tensor")),
)
# Along which axes gradients are summed: of what tensor ranks cut, of what they hold alike, of what both ends of a
# pipeline hold.
Kind = Literal["cut", "alike", "tied"]
SUMMED: dict[Kind, tuple[Axis, ...]] = {
    "cut": ("data", "shard", "context"),
    "alike": ("data", "shard", "context", "tensor"),
    "tied": ("data", "shard", "context"),
}


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


@dataclass(frozen=True, eq=False)
class Hosts:
    """A group that spans hosts, several of its ranks on one. inside: those on this rank's host. between: the first ones
    of each host; None on others. count: of hosts."""

    inside: Group
    between: Group | None
    count: int


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
        self._groups = {axes: self._make(axes) for axes in ASKED}
        self._sums: dict[Kind, Group] = {}
        for kind, axes in SUMMED.items():
            self._handles = {}  # no two of these have one, nor share it with others: see `sums`
            self._sums[kind] = self._make(axes)
        self._hosts = self._make_hosts(ranks.hosts())

    def group(self, *axes: Axis) -> Group:
        """This rank's group along these axes, one of ASKED."""
        return self._groups[tuple(sorted(axes, key=AXES.index))]

    def sums(self, kind: Kind) -> Group:
        """The ranks that hold the same piece of a parameter and have seen other tokens. They sum its gradient on a
        thread of their own, so over a handle of their own: a rank would take another's message for the wrong one."""
        return self._sums[kind]

    def hosts(self, kind: Kind) -> Hosts | None:
        """How `sums` lies on hosts; None if it is on one alone, or has one rank on each."""
        return self._hosts[kind]

    @cached_property
    def samples(self) -> Group:
        """Ranks along which the samples of a step are divided."""
        return self.group("data", "shard")

    @cached_property
    def sample_rank_of(self) -> tuple[int, ...]:
        """By number of a rank in the run, its place in `samples`."""
        at = np.unravel_index(np.arange(self.ranks.world), self.shape)
        places = at[AXES.index("data")] * self.layout.shard + at[AXES.index("shard")]
        return tuple(int(place) for place in places)

    @property
    def is_first_of_its_samples(self) -> bool:
        """Whether this rank speaks for its samples: of those that see the same, one does."""
        return not (self.at["context"] or self.at["tensor"] or self.at["pipeline"])

    @property
    def is_last_stage(self) -> bool:
        return self.at["pipeline"] == self.layout.pipeline - 1

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
        found = [self._group(members) for members in self._rows(axes)]
        return next(group for group in found if group is not None)

    def _rows(self, axes: tuple[Axis, ...]) -> list[tuple[int, ...]]:
        """The members of every group along these axes; each rank is in one of them."""
        last = [AXES.index(axis) for axis in axes]
        rest = [i for i in range(len(AXES)) if i not in last]
        rows = np.transpose(self._numbers, rest + last).reshape(-1, size_of(self.layout, axes))
        return [tuple(row) for row in rows.tolist()]

    def _group(self, members: tuple[int, ...]) -> Group | None:
        """None if this rank is not in it. Every rank calls this, members or not."""
        handle = self._process_group(members) if len(members) > 1 else None
        me = self.ranks.rank
        return Group(len(members), members.index(me), members, handle) if me in members else None

    def _make_hosts(self, host_r: Sequence[int]) -> dict[Kind, Hosts | None]:
        """host_r: by rank, a number of its host."""
        found: dict[Kind, Hosts | None] = {}
        for kind, axes in SUMMED.items():
            self._handles, found[kind] = {}, None
            for members in self._rows(axes):
                by_host: dict[int, list[int]] = {}
                for member in members:
                    by_host.setdefault(host_r[member], []).append(member)
                if 1 < len(by_host) < len(members):
                    between = self._group(tuple(some[0] for some in by_host.values()))
                    inside = [self._group(tuple(some)) for some in by_host.values()]
                    for group in inside:
                        found[kind] = found[kind] if group is None else Hosts(group, between, len(by_host))
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
