"""As `runs_rank`, but rank 1 is a slow machine: each of its samples takes it so much longer.

Each rank writes down which samples of each step it was handed, into its file had-RANK.jsonl in the run's folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sheaf.console import Silent
from sheaf.order.loader import Batch
from sheaf.parallel.parallelize import Spread
from sheaf.parallel.ranks import join
from sheaf.train import pace
from sheaf.train.run import Run
from sheaf.train.setup import exact
from sheaf.train.trainer import Trainer, train_run

SECONDS_A_SAMPLE = 0.15  # much beside what a busy machine adds
WINDOW = 8  # steps, so that the test is short
learn, make_step = Spread.learn, Trainer._step


def slowly(self: Spread, micro: Sequence[Any], predictions: int) -> Tensor:
    if os.environ["RANK"] == "1":
        time.sleep(SECONDS_A_SAMPLE * sum(len(labels) for _, labels in micro))
    return learn(self, micro, predictions)


def noted(self: Trainer, batch: Batch, *others: Any) -> dict[str, Any]:
    with (self.run.folder / f"had-{self.ranks.rank}.jsonl").open("a") as file:
        file.write(json.dumps(batch.samples.tolist()) + "\n")
    return make_step(self, batch, *others)


if __name__ == "__main__":
    Trainer._step = noted  # type: ignore[method-assign]
    Spread.learn = slowly  # type: ignore[method-assign]
    pace.WINDOW = WINDOW
    with exact(1), join() as joined:
        for folder in sys.argv[1:]:
            train_run(Run.open(Path(folder)), joined, Silent())
