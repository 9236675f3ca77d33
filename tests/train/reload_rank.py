"""One rank that takes a run's newest checkpoint over under another layout, saves what it holds, and makes one step.

`python -m reload_rank RUN LAYOUT OUT`, started by `run_ranks`.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from sheaf.console import Silent
from sheaf.files import write_json
from sheaf.parallel.mesh import size_of
from sheaf.parallel.ranks import alone, join
from sheaf.recipe import Layout
from sheaf.train.checkpoint import CheckpointWriter
from sheaf.train.run import Run
from sheaf.train.setup import exact
from sheaf.train.trainer import Trainer


def main(folder: Path, layout: Layout, out: Path) -> None:
    run = Run.open(folder)
    run = Run(run.folder, {**run.record, "layout": layout.model_dump(), "ranks": size_of(layout)})
    with exact(1), nullcontext(alone()) if os.environ["WORLD_SIZE"] == "1" else join() as ranks:
        trainer = Trainer(run, ranks, Silent())
        writer = CheckpointWriter(out, 2, ranks.rank, ranks.world)
        ranks.sum([0.0])  # the folder is there
        with trainer.learner.optimizer.as_evaluated():
            writer.save({"step": trainer.done, "model": trainer.learner.spread.config.to_hf()}, trainer.learner.state())
        writer.wait()
        writer.close()
        with trainer._loader(trainer.done, trainer.done + 1) as loader:
            (loss,) = [trainer.learner.step(batch, 1e-3).loss for batch in loader]
        if ranks.rank == 0:
            write_json(out / "loss.json", loss)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Layout.model_validate_json(sys.argv[2]), Path(sys.argv[3]))
