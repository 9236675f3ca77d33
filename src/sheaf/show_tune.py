"""What a person sees of a search: the trials, the best first, and what to write into the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from sheaf.console import duration
from sheaf.drawing import line, table

Json = dict[str, Any]


def tuned(data: Json) -> Sequence[RenderableType]:
    """The evidence, and the difference to the recipe."""
    measure = data["measure"].replace("_", " ")
    names = list(data["best"]["values"])
    ranked = sorted(data["trials"], key=lambda one: (-one["percent"], one["measured"] or 0.0, one["trial"]))
    rows = [_row(one, names) for one in ranked]
    sources = ", ".join(data["judged_on"]["sources"])
    best, first = data["best"], data["first"]
    lines = [line(f"held-out {measure}, on records of {sources} that no trial trains on")]
    parts: list[RenderableType] = [
        *lines,
        table([">trial", *names, ">of the run", f">{measure}", ">steps", ">time", "run"], rows),
    ]
    said = f"trial {best['trial']}: {best['measured']:.4f} after {best['percent']}% of its run"
    if first["measured"] is not None and first["trial"] != best["trial"]:
        said += f"; the first one, which took the usual values, had {first['measured']:.4f} after {first['percent']}%"
    parts.append(line(said))
    if data["time_is_up"]:
        parts.append(line("time was up before all trials were made; the same command goes on"))
    if (transfer := data["transfer"]) is not None:
        parts.append(
            line(f"carried over from width {transfer['from']} to {transfer['to']}, as {transfer['optimizer']} needs it")
        )
    parts += [line(""), *(line(each) for each in data["difference"].splitlines())]
    if data["out"] is not None:
        parts.append(line(f"the whole recipe: {data['out']}"))
    return parts


def _row(one: Json, names: Sequence[str]) -> tuple[str, ...]:
    values = [_said(one["values"].get(name)) for name in names]
    measured = "–" if one["measured"] is None else f"{one['measured']:.4f}"
    reached = f"{one['percent']}%" + ("" if one["state"] in ("done", "dropped") else f" {one['state']}")
    run = one["why"] or (one["run"] or "").rpartition("/")[2]
    return (str(one["trial"]), *values, reached, measured, f"{one['steps']:,}", duration(one["seconds"]), run)


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
