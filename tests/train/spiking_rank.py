"""One rank that trains a run in which the loss of one step is planted to spike: `python -m spiking_rank RUN STEP`."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from sheaf.console import Silent
from sheaf.order.loader import Batch
from sheaf.parallel.parallelize import Spread
from sheaf.parallel.ranks import alone, join
from sheaf.train import spikes
from sheaf.train.learner import Learner, StepResult
from sheaf.train.run import Run
from sheaf.train.setup import exact
from sheaf.train.trainer import train_run

FACTOR = 30.0
_step, _loss = Learner.step, Spread._loss


def plant(at: dict[int, float]) -> None:
    """at: step → factor on its loss. The history that a judgement needs is made short."""
    now = [0]

    def step(self: Learner, batch: Batch, *rest: Any, **named: Any) -> StepResult:
        now[0] = batch.step
        return _step(self, batch, *rest, **named)

    def loss(self: Spread, hidden: Tensor, labels: Tensor) -> Tensor:
        return _loss(self, hidden, labels) * at.get(now[0], 1.0)

    Learner.step, Spread._loss, spikes.LEAST = step, loss, 8  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    plant({int(sys.argv[2]): FACTOR})
    with exact(1), nullcontext(alone()) if os.environ["WORLD_SIZE"] == "1" else join() as ranks:
        train_run(Run.open(Path(sys.argv[1])), ranks, Silent())
