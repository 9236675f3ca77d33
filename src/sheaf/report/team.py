"""What the ranks of a run said to each other and how busy each was, from the journal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RankFacts:
    """busy: seconds of a mean step in which the rank computed. share: of the step; the rest it waited."""

    rank: int
    busy: float
    share: float


@dataclass(frozen=True)
class TeamFacts:
    """Of the steps that as many ranks made as the last one. bytes: what rank 0 sent in a mean step. seconds: how long
    it was sending or waiting for others; hidden: the part of them that lay behind its computing, 0 … 1. splits: from
    which step on samples were divided by which speeds; none: equal parts again."""

    bytes: float
    seconds: float
    hidden: float
    ranks: tuple[RankFacts, ...]
    splits: tuple[tuple[int, list[float]], ...]


def team_facts(steps: Sequence[dict[str, Any]]) -> TeamFacts | None:
    """None for one rank alone."""
    world = steps[-1].get("ranks", 1) if steps else 1
    those = [step for step in steps if step.get("ranks") == world and "busy" in step]
    if world == 1 or not those:
        return None

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    whole, hidden = mean([s["seconds"] for s in those]), mean([s["hidden_communication"] for s in those])
    seconds = hidden + mean([s["communication_seconds"] for s in those])
    busy = [mean([step["busy"][rank] for step in those]) for rank in range(world)]
    return TeamFacts(
        bytes=mean([float(s["bytes_sent"]) for s in those]),
        seconds=seconds,
        hidden=hidden / seconds if seconds else 0.0,
        ranks=tuple(RankFacts(rank, value, value / whole if whole else 0.0) for rank, value in enumerate(busy)),
        splits=tuple(_splits(those)),
    )


def _splits(steps: Sequence[dict[str, Any]]) -> Iterator[tuple[int, list[float]]]:
    before: list[float] = []
    for step in steps:
        speeds: list[float] = step.get("speeds", [])
        if speeds != before:
            yield step["step"], speeds
        before = speeds
