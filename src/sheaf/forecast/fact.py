"""A run's forecast beside what came of it. `forecast.json` lies in the run's folder from its start."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import orjson

from sheaf.train import journal

FORECAST = "forecast.json"
SKIPPED = 2  # steps that find their kernels, or compile
Json = dict[str, Any]


def read_forecast(run: Path) -> Json | None:
    """None of a run that was started otherwise than by `sheaf train`."""
    path = run / FORECAST
    return orjson.loads(path.read_bytes()) if path.exists() else None


def against_fact(run: Path) -> Json | None:
    """{"step_seconds", "memory_bytes", "steps_seconds", "evaluation_seconds": {"forecast", "fact", "ratio"}}, as far as
    the run has come: ratio is fact over forecast. None without a forecast or a step."""
    told, lines = read_forecast(run), journal.read(run)
    if told is None or not lines:
        return None
    facts = facts_of_run(run, lines)
    pairs = {name: (told["raw"].get(name), fact) for name, fact in facts.items()}
    return {
        name: {"forecast": forecast, "fact": fact, "ratio": fact / forecast}
        for name, (forecast, fact) in pairs.items()
        if forecast and fact
    }


def facts_of_run(run: Path, lines: list[Json]) -> dict[str, float]:
    settled = lines[SKIPPED:] or lines
    evaluations = journal.read_evaluations(run)
    return {
        "step_seconds": statistics.median(line["seconds"] for line in settled),
        "memory_bytes": float(max(line.get("peak_memory_bytes", 0) for line in lines)),
        "steps_seconds": sum(line["seconds"] for line in lines),
        "evaluation_seconds": sum(line.get("seconds", 0.0) for line in evaluations),
    }
