"""Steps whose loss or gradient norm jumps, and what becomes of them (`train.spikes`).

A step is a spike if its loss or its gradient norm lies more than 6 standard deviations above the mean of the 128 steps
before it, once there are 64: the rule of OLMo-core (optim/skip_step_optimizer.py). Spikes count in that history too, so
a level that stays is normal after a while. What is not finite is a spike, and does not count.

`skip`: the update is not made; the step stays in the journal, as skipped. `rollback`: the run goes back to its newest
checkpoint from before the spike and the 8 steps that led to it, and makes them again without their updates (after
Chowdhery et al. 2022, PaLM, section 5.1, who go back and leave out the batches around a spike). Which steps these are
is written into run.json before anything else, so a run that is killed at any moment and resumed arrives at the same
weights: those of a run in which these updates were never made.

All of it follows from losses and norms that every rank has; rank 0's judgement counts. The history is in the
checkpoint. Cost: one small message a step.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from sheaf.errors import TrainingFailed
from sheaf.parallel.ranks import Ranks
from sheaf.train.run import Run

WINDOW, LEAST, DEVIATIONS = 128, 64, 6.0
LED_TO_IT = 8
NOT_FINITE_IN_A_ROW = 8  # by then it is the weights
ROLLBACKS = 10


class RollBack(Exception):
    """Go back before the spike at `step`."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(why)
        self.step, self.why = step, why

    def without_frames(self) -> RollBack:
        """Itself, to be kept for longer than the frames that it came through."""
        return RollBack(self.step, self.why)


class SpikeGuard:
    """Judges every step of a run, in order. avoided: steps whose updates are not made."""

    def __init__(self, mode: Literal["off", "skip", "rollback"] = "off", avoided: Iterable[int] = ()) -> None:
        self.mode: Literal["off", "skip", "rollback"] = mode
        self.avoided = frozenset(avoided)
        self.forget()

    def forget(self) -> None:
        """As before the first step."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._not_finite = 0

    def passes(self, step: int, loss: float, norm: float, ranks: Ranks) -> bool:
        """Whether the update of a step is to be made. Called by every rank, with the global loss and gradient norm.

        Raises RollBack on every rank, if that is wanted and the step is a spike that is not avoided yet.
        """
        if self.mode == "off":
            return True
        why = self._jump(loss, norm)
        (spike,) = ranks.from_first([float(bool(why))])
        self._remember(loss, norm)
        if step in self.avoided:
            return False
        if self._not_finite > NOT_FINITE_IN_A_ROW:
            return True  # the learner says what is wrong
        if spike and self.mode == "rollback":
            raise RollBack(step, why)
        return not spike

    def state(self) -> dict[str, Any]:
        """Small JSON; `load` of it goes on bit for bit."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "not_finite": self._not_finite,
            "avoided": sorted(self.avoided),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.forget()
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        self._not_finite = state["not_finite"]

    def _jump(self, loss: float, norm: float) -> str:
        """Why the step is a spike, or "" """
        for name, value, before in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            if not math.isfinite(value):
                return f"its {name} is {value}"
            if len(before) < LEAST:
                continue
            mean, deviation = statistics.fmean(before), statistics.stdev(before)
            if value > mean + DEVIATIONS * deviation:
                return f"its {name} is {value:.4g}, after {mean:.4g} ± {deviation:.2g}"
        return ""

    def _remember(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self._losses.append(loss)
            self._norms.append(norm)
            self._not_finite = 0
        else:
            self._not_finite += 1


def rolled_back(run: Run, spike: RollBack, ranks: Ranks) -> Run:
    """The run as it goes on without the updates around a spike. Called by every rank when its files are closed.

    Raises TrainingFailed if that has happened too often.
    """
    run = Run.open(run.folder)  # what has been decided since it began is in it
    avoided = sorted({*run.avoided, *range(max(0, spike.step - LED_TO_IT), spike.step + 1)})
    if len(avoided) > ROLLBACKS * (LED_TO_IT + 1):
        raise TrainingFailed(
            f"the loss spikes again and again: {len(avoided)} updates are left out already",
            where=f"step {spike.step}",
            why=spike.why,
            fix="lower train.learning_rate, or look at the texts: `sheaf trace --step`",
        )
    if ranks.rank == 0:
        run.updated(avoided=avoided)
    ranks.sum([0.0])  # nobody reads run.json before it is written, or looks for checkpoints while one is
    return Run.open(run.folder)
