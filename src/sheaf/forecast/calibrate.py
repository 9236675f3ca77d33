"""What finished runs teach: how far forecasts were off, part by part, kept in the workspace and taken into account.

Of each finished run with a forecast, fact over forecast of a step's seconds, of memory, of an evaluation; the factor is
their median, its spread the mean distance from it. Forecasts that rest on a measured machine and on assumed rates are
told apart, and GPUs from processors. What a run keeps is its forecast without any factor, so factors never pile up.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import orjson

from sheaf.errors import UsageError
from sheaf.files import folder_of, write_json
from sheaf.forecast.fact import against_fact, read_forecast
from sheaf.recipe import Recipe
from sheaf.runs import read_record, runs_of

CALIBRATION = "calibration.json"
PARTS = ("step_seconds", "memory_bytes", "evaluation_seconds")
LEAST_SPREAD = 0.05  # no forecast is nearer than that, however well the runs agree
ALONE_SPREAD = 0.2  # of one run, whose distance from others is not known
Json = dict[str, Any]


@dataclass(frozen=True)
class Factor:
    """What a part is multiplied by; spread: of it, as a share; runs: that it was learned from."""

    factor: float = 1.0
    spread: float = 0.0
    runs: int = 0


NONE = Factor()


def calibrate(recipe: Recipe) -> Json:
    """Learn from the finished runs of a recipe's workspace. Returns {"file", "runs", "kinds": {KIND: {PART: {"factor",
    "spread", "runs"}}}}. Raises UsageError if there is none with a forecast."""
    workspace = folder_of(recipe.workspace)
    found: dict[str, dict[str, list[float]]] = {}
    runs = 0
    for run in runs_of(workspace):
        told, compared = read_forecast(run), against_fact(run)
        if read_record(run)["result"] is None or told is None or compared is None:
            continue
        runs += 1
        for part in PARTS:
            if part in compared:
                found.setdefault(told["kind"], {}).setdefault(part, []).append(compared[part]["ratio"])
    if not runs:
        raise UsageError(
            "there is no finished run with a forecast to learn from",
            where=str(workspace / "runs"),
            fix="`sheaf train` leaves one in every run's folder",
        )
    kinds = {kind: {part: _factor(ratios) for part, ratios in parts.items()} for kind, parts in found.items()}
    path = workspace / CALIBRATION
    write_json(path, kinds)
    return {"file": str(path), "runs": runs, "kinds": kinds}


def _factor(ratios: list[float]) -> Json:
    middle = statistics.median(ratios)
    spread = ALONE_SPREAD
    if len(ratios) > 1:
        spread = max(LEAST_SPREAD, sum(abs(ratio - middle) for ratio in ratios) / len(ratios) / middle)
    return {"factor": float(f"{middle:.4g}"), "spread": round(spread, 4), "runs": len(ratios)}


def factors(workspace: str, kind: str) -> dict[str, Factor]:
    """By part; of a workspace that has learned nothing of the kind, an empty table."""
    path = folder_of(workspace) / CALIBRATION
    if not path.exists():
        return {}
    known: Json = orjson.loads(path.read_bytes()).get(kind, {})
    return {part: Factor(**values) for part, values in known.items()}


def kind_of(*, gpu: bool, measured: bool) -> str:
    return f"{'gpu' if gpu else 'cpu'}, {'measured' if measured else 'assumed'}"
