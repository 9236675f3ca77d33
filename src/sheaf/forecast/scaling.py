"""How time and cost go with the number of hosts, and where more of them no longer pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sheaf.errors import UsageError
from sheaf.forecast.layouts import counted, fitting
from sheaf.forecast.machines import Accelerator
from sheaf.forecast.subject import Subject
from sheaf.forecast.training import chosen, least, training
from sheaf.forecast.where import there

Json = dict[str, Any]
PAYS = 0.5  # of what more hosts could gain at best, they do gain at least so much
TOLD = ("layout", "step_seconds", "seconds", "tokens_per_second", "memory_bytes", "cost")


def scaling(
    subject_on: Callable[[int], Subject], known: Accelerator, counts: Sequence[int], price: float | None
) -> list[Json]:
    """The best layout on each number of hosts. efficiency: tokens a second of a rank, over the most that any number
    has. pays: against the number before it."""
    return _paying([_of(count, subject_on, known, price) for count in sorted(set(counts))])


def _of(count: int, subject_on: Callable[[int], Subject], known: Accelerator, price: float | None) -> Json:
    ranks = count * known.per_node
    found: Json = {"nodes": count, "ranks": ranks, "layout": None}
    subject, where = subject_on(ranks), there(known, ranks)
    try:
        good, out = fitting(subject, where.place, most=1)
        row = chosen(subject, where, good)
    except UsageError as error:
        return {**found, "reason": error.why or error.what}
    if row is None or row.reason:
        nearest = row or least(out)
        return {**found, "reason": nearest.reason if nearest else counted(out)[0]["reason"]}
    told = training(subject, where, row, price)
    return {**found, "reason": "", **{key: told[key] for key in TOLD}}


def _paying(found: list[Json]) -> list[Json]:
    able = [one for one in found if one["layout"] is not None]
    most = max((one["tokens_per_second"]["value"] / one["ranks"] for one in able), default=1.0)
    for at, one in enumerate(able):
        speed, before = one["tokens_per_second"]["value"], able[max(0, at - 1)]
        one["efficiency"] = speed / one["ranks"] / most
        gained = speed / before["tokens_per_second"]["value"] - 1
        one["pays"] = gained >= PAYS * (one["ranks"] / before["ranks"] - 1)
    return found
