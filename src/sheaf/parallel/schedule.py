"""In which order each rank of a pipeline does what: forward, backward, and the weights' part of a backward.

A layout has `stages` stages, one or two to a rank, and a step has `micro` micro-batches. Every schedule here comes from
one rule, played through in time: a rank goes forward until as many micro-batches are in flight as it takes until the
first comes back, and from then on backward and forward in turn; while it waits it does a weights' part that was put
off. What differs:

    1f1b         one stage a rank; in flight at most as many micro-batches as ranks from here to the end. Bubble:
                 (p − 1)/(m + p − 1) of a step of m micro-batches on p ranks (PipeDream-Flush, Narayanan et al. 2021a).
    interleaved  two stages a rank, stage s on rank s mod p: the bubble is half, the messages are twice as many
                 (Narayanan et al. 2021b). The micro-batches must be a multiple of the ranks.
    zero-bubble  one stage a rank; a backward gives the gradient of its input at once, and that of the weights when
                 there is nothing else to do (ZB-H1, Qi et al. 2023). Bubble: (p − 1)/(3·m + p − 1).

Every rank plays the same game and so knows what the others do, with no message. Cost: O(stages · micro · ranks) on
each rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["1f1b", "interleaved", "zero-bubble"]
Work = Literal["forward", "backward", "weights"]
SECONDS: dict[Work, int] = {"forward": 1, "backward": 2}  # relative; in two parts, the backward's are 1 each


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of one micro-batch through one stage."""

    work: Work
    stage: int
    micro: int


@dataclass(frozen=True)
class Plan:
    """passes: by rank, in the order in which it does them. bubble: share of the ranks' time in which they wait."""

    passes: list[list[Pass]]
    bubble: float


def stages_of(kind: Kind, ranks: int, rank: int) -> list[int]:
    """The stages that a rank holds."""
    return [rank, rank + ranks] if kind == "interleaved" else [rank]


def plan(kind: Kind, ranks: int, micro: int, *, backward: bool = True) -> Plan:
    """The passes of all ranks. backward: False for evaluation, which only goes forward."""
    return _Game(kind, ranks, micro, backward).play()


class _Game:
    def __init__(self, kind: Kind, ranks: int, micro: int, backward: bool) -> None:
        self.kind: Kind = kind
        self.ranks, self.backward = ranks, backward
        self.stages = ranks * len(stages_of(kind, ranks, 0))
        self.ends: dict[Pass, int] = {}
        self.to_do = [self._orders(rank, micro) for rank in range(ranks)]
        self.in_flight = [0] * ranks

    def _orders(self, rank: int, micro: int) -> dict[Work, list[Pass]]:
        """A rank's passes by kind, each in the order in which they come. With two stages on a rank, as many
        micro-batches as there are ranks go through one of them, then through the other."""
        mine = stages_of(self.kind, self.ranks, rank)
        groups = [range(m, min(m + self.ranks, micro)) for m in range(0, micro, self.ranks)]
        forward = [Pass("forward", stage, m) for group in groups for stage in mine for m in group]
        backward = [Pass("backward", stage, m) for group in groups for stage in reversed(mine) for m in group]
        return {"forward": forward, "backward": backward if self.backward else [], "weights": []}

    def play(self) -> Plan:
        passes: list[list[Pass]] = [[] for _ in range(self.ranks)]
        free_at = [0] * self.ranks
        now = 0
        while any(any(left.values()) for left in self.to_do):
            for rank in range(self.ranks):
                if free_at[rank] <= now and (chosen := self._choose(rank, now)) is not None:
                    self._take(rank, chosen)
                    free_at[rank] = self.ends[chosen] = now + self._seconds(chosen.work)
                    passes[rank].append(chosen)
            now += 1
        busy = sum(self._seconds(one.work) for some in passes for one in some)
        return Plan(passes, 1 - busy / (max(free_at) * self.ranks))

    def _seconds(self, work: Work) -> int:
        return 1 if self.kind == "zero-bubble" else SECONDS[work]

    def _choose(self, rank: int, now: int) -> Pass | None:
        left = self.to_do[rank]
        forward = left["forward"] and (not self.backward or self.in_flight[rank] <= self._ahead(rank))
        turn = left["forward"] if forward else left["backward"]
        most_put_off = rank  # so that a rank holds no more activations than the first one does
        if turn and self._ready(turn[0], now) and len(left["weights"]) <= most_put_off:
            return turn[0]
        return left["weights"][0] if left["weights"] else None

    def _ready(self, one: Pass, now: int) -> bool:
        return all(self.ends.get(before, now + 1) <= now for before in needs(one, self.stages))

    def _ahead(self, rank: int) -> int:
        """Micro-batches that a rank has begun when its first backward is due."""
        if self.kind == "interleaved":
            return (self.ranks - rank - 1) * 2 + self.ranks
        return self.ranks - rank - 1

    def _take(self, rank: int, one: Pass) -> None:
        self.to_do[rank][one.work].remove(one)
        if one.work == "forward":
            self.in_flight[rank] += 1
        elif one.work == "backward":
            self.in_flight[rank] -= 1
            if self.kind == "zero-bubble":
                self.to_do[rank]["weights"].append(Pass("weights", one.stage, one.micro))


def needs(one: Pass, stages: int) -> list[Pass]:
    """The passes that must be done before this one can begin."""
    if one.work == "forward":
        return [Pass("forward", one.stage - 1, one.micro)] if one.stage > 0 else []
    if one.work == "weights":
        return [Pass("backward", one.stage, one.micro)]
    after = [Pass("backward", one.stage + 1, one.micro)] if one.stage < stages - 1 else []
    return [Pass("forward", one.stage, one.micro), *after]
