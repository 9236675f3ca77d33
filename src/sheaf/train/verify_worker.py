"""One rank of a verification: `python -m sheaf.train.verify_worker SPEC FOLDER`, started by `verify`.

For each layout of the spec: build the model, make the steps, leave the pieces that this rank holds.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from torch import Tensor

from sheaf.corpus.version import CorpusVersion
from sheaf.files import write_json
from sheaf.model.pieces import Piece
from sheaf.order.gather import Tokens
from sheaf.order.loader import Loader
from sheaf.order.order import Order
from sheaf.parallel.forker import LAUNCHER
from sheaf.parallel.local import local
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import Ranks, alone_or_joined, threads_for
from sheaf.processes import die_with_parent, leave
from sheaf.recipe import Layout, Recipe
from sheaf.train.learner import Learner
from sheaf.train.optimizer import Update, choose, default_rate
from sheaf.train.plan import new_values
from sheaf.train.settings import start_of
from sheaf.train.setup import DTYPES, exact, order_of
from sheaf.train.tensors import write_tensors
from sheaf.train.verify import comparable, folder_name, of_one_process


def main(spec_file: Path, folder: Path) -> int:
    """Work through the spec as the rank that the environment names. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(os.environ[LAUNCHER]))
    spec = orjson.loads(spec_file.read_bytes())
    if spec["fault"]:
        runpy.run_path(spec["fault"])
    try:
        recipe = Recipe.model_validate_json(orjson.dumps(spec["recipe"]))
        corpus = CorpusVersion.open(Path(spec["workspace"]), spec["corpus"])
        order = _order(recipe, corpus, spec["batch"])
        with exact(threads_for(int(os.environ["WORLD_SIZE"]))), alone_or_joined() as ranks:
            for layout in map(Layout.model_validate, spec["layouts"]):
                learner = _learner(recipe, corpus, layout, ranks, spec["precision"])
                _one(learner, order, corpus.token_files(), spec["steps"], _rate(recipe, learner), folder)
    except Exception as error:  # noqa: BLE001  (it is told by the parent)
        traceback.print_exc()
        (folder / f"failure-{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _one(learner: Learner, order: Order, files: Sequence[Tokens], steps: int, rate: float, folder: Path) -> None:
    """The steps of one layout."""
    spread, ranks, layout = learner.spread, learner.ranks, learner.spread.mesh.layout
    where, samples = folder / folder_name(layout), spread.mesh.samples
    where.mkdir(exist_ok=True)
    losses: list[float] = []
    found = _Kept(spread)
    with Loader(order, files, rank=samples.rank, world=samples.size, stop=steps) as loader:
        for batch in loader:
            if layout != Layout():
                spread.fill(of_one_process(folder, "before", batch.step))
            before = {name: tensor.clone() for name, tensor in spread.held().items()}
            watch = partial(_compare_gradients, found, batch.step, None if layout == Layout() else folder)
            losses.append(learner.step(batch, rate, watch=watch).loss)
            after = spread.held()
            found.keep(f"change:{batch.step}", {name: after[name] - before[name] for name in spread.trained()})
            if layout == Layout():
                found.keep(f"before:{batch.step}", before)
    found.write(where / f"pieces-{ranks.rank}")
    if ranks.rank == 0:
        write_json(where / "losses.json", losses)


def _compare_gradients(found: _Kept, step: int, folder: Path | None) -> None:
    """Keep the gradients of a step; then, of a layout, go on with those of the one process, which lie in folder."""
    spread = found.spread
    gradients = {name: local(p.grad) for name, p in spread.parameters().items() if p.grad is not None}
    found.keep(f"gradient:{step}", gradients)
    if folder is not None:
        value = of_one_process(folder, "gradient", step)
        for name, gradient in gradients.items():
            gradient.copy_(value(name, spread.pieces[name]))


class _Kept:
    """Copies of what this rank is the first to hold, with which pieces they are."""

    def __init__(self, spread: Spread) -> None:
        self.spread = spread
        self.tensors: dict[str, Tensor] = {}
        self.pieces: dict[str, Piece] = {}

    def keep(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if self.spread.writes(name) and tensor.numel():
                self.tensors[f"{kind}:{name}"] = tensor.detach().float().cpu().clone()
                self.pieces[f"{kind}:{name}"] = self.spread.pieces[name]

    def write(self, stem: Path) -> None:
        write_tensors(stem.with_suffix(".safetensors"), self.tensors)
        write_json(stem.with_suffix(".json"), {key: (piece.shape, piece.box) for key, piece in self.pieces.items()})


def _order(recipe: Recipe, corpus: CorpusVersion, batch: int) -> Order:
    train = recipe.train.model_copy(update={"batch_tokens": batch * recipe.train.sequence_length})
    return order_of(recipe.model_copy(update={"train": train}), corpus, "train")


def _learner(recipe: Recipe, corpus: CorpusVersion, layout: Layout, ranks: Ranks, precision: Any) -> Learner:
    train = recipe.train
    plan, values = new_values(recipe, corpus, digest=False)
    how = How(
        recompute=train.activation_checkpointing,
        lora=plan.lora,
        frozen=plan.frozen,
        communication=comparable(train.communication),
    )
    spread = Spread(plan.config, DTYPES[precision], Mesh(ranks, layout), how, values)
    optimizer, _ = choose(train.optimizer, start_of(recipe))
    update = Update(optimizer, train.weight_decay, train.betas, precision, train.rates)
    return Learner(spread, update, train.clip, 1)


def _rate(recipe: Recipe, learner: Learner) -> float:
    hidden = learner.spread.config.hidden_parameters()
    return recipe.train.learning_rate or default_rate(learner.update.optimizer, hidden, start_of(recipe))[0]


if __name__ == "__main__":
    leave(main(Path(sys.argv[1]), Path(sys.argv[2])))
