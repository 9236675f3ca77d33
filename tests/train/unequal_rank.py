"""One of three ranks of unequal speed, the last too slow for any sample: steps, then held-out text; for its test."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sheaf.corpus.version import CorpusVersion
from sheaf.order.loader import Loader
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import Ranks, join
from sheaf.recipe import Layout, Recipe
from sheaf.train.evaluate import evaluate
from sheaf.train.learner import Learner
from sheaf.train.optimizer import Update
from sheaf.train.plan import new_values
from sheaf.train.setup import order_of

SPEEDS = (2.0, 1.0, 0.01)
STEPS = 4


def train(recipe: Recipe, ranks: Ranks, speeds: tuple[float, ...] | None) -> dict[str, Any]:
    """Losses, gradient norms and samples of this rank in each step, and the held-out loss."""
    torch.set_num_threads(1)
    corpus = CorpusVersion.open(Path(recipe.workspace))
    order, files = order_of(recipe, corpus, "train"), corpus.token_files()
    plan, values = new_values(recipe, corpus)
    mesh = Mesh(ranks, Layout(data=ranks.world))
    spread = Spread(plan.config, torch.float32, mesh, How(), values)
    learner = Learner(spread, Update("adamw", 0.1, (0.9, 0.95), "fp32"), 1.0, 2)
    told: dict[str, Any] = {"losses": [], "norms": [], "samples": []}
    place = {"rank": ranks.rank, "world": ranks.world}
    with Loader(order, files, stop=STEPS, speeds=speeds, **place) as loader:
        for batch in loader:
            result = learner.step(batch, 0.01)
            told["losses"].append(result.loss)
            told["norms"].append(result.gradient_norm)
            told["samples"].append(len(set(batch.samples.tolist())))
    held_out = order_of(recipe, corpus, "held_out")
    told["left"] = len(held_out.samples((held_out.steps or 0) - 1))
    return told | evaluate(spread, corpus, held_out, files, micro_samples=2)


if __name__ == "__main__":
    with join() as joined:
        told = train(Recipe.model_validate_json(Path(sys.argv[1]).read_bytes()), joined, SPEEDS)
    Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(told))
