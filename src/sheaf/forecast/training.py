"""What training takes, of one subject in one place: the layout that the run would have, its step, memory, hours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sheaf.forecast import run_time as times
from sheaf.forecast.calibrate import NONE, Factor, factors
from sheaf.forecast.layouts import Row, judged
from sheaf.forecast.memory import ERROR as MEMORY_ERROR
from sheaf.forecast.subject import Subject
from sheaf.forecast.where import Where
from sheaf.parallel.choose import choose
from sheaf.parallel.layout import describe, of_ranks
from sheaf.recipe import Layout

Json = dict[str, Any]


def chosen(subject: Subject, where: Where, good: Sequence[Row]) -> Row | None:
    """The layout that the run would have: the recipe's, or as `layout: auto` would; None if none fits."""
    place, asked = where.place, subject.recipe.train.layout
    facts = subject.facts(place.ranks)
    if asked != "auto":
        return judged(subject, of_ranks(asked, place.ranks), facts, place)
    if not good:
        return None
    if where.known is not None:
        return good[0]
    if place.ranks == 1:
        return judged(subject, Layout(), facts, place)
    layout, _ = choose(place.ranks, facts, place.machine)
    row = judged(subject, layout, facts, place)
    return good[0] if row.reason else row


def least(out: Sequence[Row]) -> Row | None:
    """Where none fits: the one that asks for the least, of those that were looked at."""
    looked = [(row.memory.peak, at) for at, row in enumerate(out) if row.memory is not None]
    possible = [row for row in out if row.cost is not None]
    return out[min(looked)[1]] if looked else next(iter(possible), None)


@dataclass(frozen=True)
class Learned:
    """What finished runs have taught for this place."""

    step: Factor = NONE
    memory: Factor = NONE
    evaluation: Factor = NONE

    @staticmethod
    def of(subject: Subject, where: Where) -> Learned:
        known = {} if where.known is not None else factors(subject.recipe.workspace, where.kind)
        names = ("step_seconds", "memory_bytes", "evaluation_seconds")
        return Learned(*(known.get(name, NONE) for name in names))


def training(subject: Subject, where: Where, row: Row, price: float | None = None) -> Json:
    """The part `training` of what `plan` tells."""
    if row.cost is None:
        raise AssertionError("a layout that can be has a cost")
    learned = Learned.of(subject, where)
    raw = row.cost.seconds
    step = raw * learned.step.factor
    known = subject.with_step_seconds(step)
    settings, ranks = known.settings, where.place.ranks
    whole = _run(known, where, row, step)
    share = learned.step.spread if learned.step.runs else where.error(subject)
    peak = row.memory and row.memory.peak * learned.memory.factor
    total, steps = math.hypot(share, subject.error), settings.steps or 0
    rank_hours = whole.seconds / 3600 * ranks
    uncalibrated = _run(known, where, row, raw)
    return {
        "layout": describe(row.layout),
        "fits": not row.reason,
        "reason": row.reason,
        "ranks": ranks,
        "steps": times.as_estimate(steps, subject.error),
        "tokens": round(steps * subject.positions * subject.filled),
        "step_seconds": times.as_estimate(step, share),
        "seconds": times.as_estimate(whole.seconds, total),
        "tokens_per_second": times.as_estimate(subject.positions * subject.filled / step, share),
        "memory_bytes": peak and times.as_estimate(peak, learned.memory.spread or MEMORY_ERROR),
        "memory": row.memory and dict(row.memory.parts),
        "room_bytes": where.place.room,
        "step": row.cost.to_json(),
        "run": whole.to_json(),
        "disk_bytes": times.disk_bytes(known),
        "cost": None if price is None else times.as_estimate(rank_hours * price, total),
        "compiled": settings.compile,
        "optimizer": settings.optimizer,
        "calibrated": {"runs": learned.step.runs, "step": learned.step.factor, "memory": learned.memory.factor},
        "kind": where.kind,
        "raw": {
            "step_seconds": raw,
            "memory_bytes": row.memory and row.memory.peak,
            "steps_seconds": uncalibrated.steps,
            "evaluation_seconds": uncalibrated.evaluation,
        },
    }


def _run(subject: Subject, where: Where, row: Row, step: float) -> times.RunTime:
    found = where.measured
    start = times.START_SECONDS if found is None else found.start_seconds
    disk = times.DISK if found is None else found.disk
    return times.run_time(subject, row, step, start=start, disk=disk, copying=where.place.machine.rates.update / 2)
