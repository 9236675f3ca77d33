"""The layouts that a model can have on so many ranks: which fit, how fast each is, and why the others are out.

Every layout is put to the cost model, which takes microseconds. Memory is looked at from the fastest on, and only where
weights, gradients and optimiser state leave room at all; on hundreds of ranks there are a thousand layouts, and nobody
wants the memory of the slowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sheaf.console import size
from sheaf.forecast.memory import Memory, kept_bytes, least_bytes, memory_of
from sheaf.forecast.subject import Subject
from sheaf.parallel.cost import Cost, cost_of
from sheaf.parallel.layout import Facts, all_layouts, check_layout, describe, problems
from sheaf.parallel.links import Machine
from sheaf.recipe import Layout

LOOKED_AT = 8  # layouts that fit, of which the memory is told
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A layout with its seconds and bytes; reason: why it cannot be or does not fit, "" if it does."""

    layout: Layout
    cost: Cost | None = None
    memory: Memory | None = None
    reason: str = ""

    def to_json(self) -> Json:
        return {
            "layout": describe(self.layout),
            "fits": not self.reason,
            "step_seconds": self.cost and self.cost.seconds,
            "memory_bytes": self.memory and self.memory.peak,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Place:
    """Where a model is to train. room: bytes of one rank. gpu: whether that is a GPU's."""

    machine: Machine
    ranks: int
    room: float
    gpu: bool


def fitting(subject: Subject, place: Place, most: int = LOOKED_AT) -> tuple[list[Row], list[Row]]:
    """(those that fit, the fastest first, at most so many; those that are out, each with its reason)."""
    facts = subject.facts(place.ranks)
    good, out, candidates = list[Row](), list[Row](), list[Row]()
    for layout in all_layouts(place.ranks):
        reasons = "; ".join(problems(layout, facts))
        if reasons:
            out.append(Row(layout, reason=reasons))
            continue
        candidates.append(Row(layout, cost_of(layout, facts, place.machine)))
    for row in sorted(candidates, key=_seconds):
        least = least_bytes(row.layout, facts)
        if least > place.room:
            out.append(Row(row.layout, row.cost, None, f"{_needs(least, place)} for weights, gradients and optimiser"))
        elif len(good) < most:
            kept = kept_bytes(subject, row.layout)
            if least + kept > place.room:
                reason = f"{_needs(least + kept, place)}; {size(kept)} are activations"
                out.append(Row(row.layout, row.cost, None, reason))
                continue
            looked = judged(subject, row.layout, facts, place)
            (out if looked.reason else good).append(looked)
        else:
            out.append(Row(row.layout, row.cost, None, "slower than those that are shown"))
    return good, out


def judged(subject: Subject, layout: Layout, facts: Facts, place: Place) -> Row:
    """One layout, looked at in full. Raises UsageError if it cannot be at all."""
    check_layout(layout, facts)
    memory = memory_of(subject, layout, place.room, gpu=place.gpu)
    reason = "" if memory is None or memory.fits else _needs(memory.peak, place)
    return Row(layout, cost_of(layout, facts, place.machine), memory, reason)


def counted(rows: Sequence[Row]) -> list[Json]:
    """Of layouts that are out, how many there are for each reason, with one of them."""
    first: dict[str, Layout] = {}
    number: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.reason, row.layout)
        number[row.reason] = number.get(row.reason, 0) + 1
    return [{"reason": reason, "layouts": number[reason], "such_as": describe(first[reason])} for reason in first]


def _needs(needed: float, place: Place) -> str:
    return f"needs {size(needed)} a rank, has {size(place.room)}"


def _seconds(row: Row) -> float:
    return row.cost.seconds if row.cost else 0.0
