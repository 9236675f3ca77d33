"""As `runs_rank`, but rank 1 is a slow machine: each of its samples takes it so much longer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sheaf.console import Silent
from sheaf.parallel.parallelize import Spread
from sheaf.parallel.ranks import join
from sheaf.train import pace
from sheaf.train.run import Run
from sheaf.train.setup import exact
from sheaf.train.trainer import train_run

SECONDS_A_SAMPLE = 0.15  # much beside what a busy machine adds
WINDOW = 8  # steps, so that the test is short
learn = Spread.learn


def slowly(self: Spread, micro: Sequence[Any], predictions: int) -> Tensor:
    if os.environ["RANK"] == "1":
        time.sleep(SECONDS_A_SAMPLE * sum(len(labels) for _, labels in micro))
    return learn(self, micro, predictions)


if __name__ == "__main__":
    Spread.learn = slowly  # type: ignore[method-assign]
    pace.WINDOW = WINDOW
    with exact(1), join() as joined:
        for folder in sys.argv[1:]:
            train_run(Run.open(Path(folder)), joined, Silent())
