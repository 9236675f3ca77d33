"""How long a run takes from its command to its result: the start, the steps, evaluations, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sheaf.forecast.layouts import Row
from sheaf.forecast.subject import Subject
from sheaf.train.settings import COMPILE_SECONDS

FORWARD = 1 / 3  # of a pass: what evaluating takes of a step's computing
START_SECONDS, DISK = 20.0, 1e9  # of a machine that is not there to be measured: a start, bytes/s of its disk
MOMENTS = 2.0  # optimiser state in a checkpoint, in weights; Muon's matrices have half of it


@dataclass(frozen=True)
class RunTime:
    """Seconds, by part. steps: of them all."""

    start: float
    compiling: float
    steps: float
    evaluation: float
    checkpoints: float

    @property
    def seconds(self) -> float:
        return self.start + self.compiling + self.steps + self.evaluation + self.checkpoints

    def to_json(self) -> dict[str, float]:
        return {
            "start": self.start,
            "compiling": self.compiling,
            "steps": self.steps,
            "evaluation": self.evaluation,
            "checkpoints": self.checkpoints,
        }


def run_time(subject: Subject, row: Row, step_seconds: float, *, start: float, disk: float, copying: float) -> RunTime:
    """disk: bytes/s. copying: bytes/s at which a checkpoint's tensors are copied. subject: with its steps known."""
    settings, cost = subject.settings, row.cost
    if settings.steps is None or cost is None:
        raise AssertionError("a run whose time is asked for has steps, and a layout that can be")
    steps, ratio = settings.steps, step_seconds / max(cost.seconds, 1e-12)
    computing = ratio * (cost.layers + cost.attention + cost.head + cost.bubble)
    evaluation = FORWARD * computing * subject.evaluated / subject.positions
    size = checkpoint_bytes(subject)
    every = settings.checkpoint_every
    saved = _times(steps, every)
    # It is written while training goes on, which waits only where the next one is due before that is done.
    waiting = max(0.0, size / disk - every * step_seconds)
    checkpoints = saved * (size / copying + waiting) + size / disk
    return RunTime(
        start=start,
        compiling=COMPILE_SECONDS if settings.compile else 0.0,
        steps=steps * step_seconds,
        evaluation=_times(steps, settings.evaluate_every) * evaluation,
        checkpoints=checkpoints,
    )


def checkpoint_bytes(subject: Subject) -> float:
    plan = subject.plan
    weights = plan.total if plan.lora is None else plan.learning
    moments = MOMENTS / 2 if subject.settings.optimizer == "muon" else MOMENTS
    return 4.0 * (weights + moments * plan.learning)


def disk_bytes(subject: Subject) -> float:
    """Of a run's folder: the checkpoints that are kept, the best one, and the one being written."""
    train = subject.recipe.train
    kept = train.keep + 1 + (1 if train.keep_best else 0)
    settings = subject.settings
    if settings.steps is None:  # ten or more are written in a budget of hours
        return checkpoint_bytes(subject) * kept
    return checkpoint_bytes(subject) * min(kept, _times(settings.steps, settings.checkpoint_every))


def _times(steps: int, every: int) -> int:
    return -(-steps // max(1, every))


def as_estimate(value: float, share: float) -> dict[str, Any]:
    """A value and what it may be off by."""
    return {"value": value, "error": share * value}
