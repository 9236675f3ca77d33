"""What computing activations again saves and costs: bytes told, bytes taken, and time of a step, in each mode.

    python bench/memory.py                 hidden 256, 6 layers, 2,048 tokens in a pass, fp32, one thread
    python bench/memory.py --precision bf16 --rounds 5

Told is `train/footprint.py`, taken the tensors that live at the peak of a real step. The modes take turns; time is the
processor's, of one thread, so that other work on the machine disturbs it little. What a block takes longer, over its
forward pass, is what `train/on_paper.py` weighs modes by: a step is a forward and a backward of twice its cost.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "train"))

import torch
from training_corpus import make_corpus, make_recipe

from sheaf.model.activations import Live
from sheaf.model.memory import keep_memory
from sheaf.model.recompute import MODES, Recompute
from sheaf.order.loader import Batch, Loader
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import alone
from sheaf.recipe import Layout
from sheaf.train.footprint import Rank, Shape
from sheaf.train.learner import Learner
from sheaf.train.optimizer import Update
from sheaf.train.plan import new_values
from sheaf.train.setup import DTYPES, exact, order_of

SAMPLES, LENGTH = 8, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.machine()} · torch {torch.__version__} · {options.precision} · {SAMPLES} × {LENGTH} · one thread")
    keep_memory()
    with tempfile.TemporaryDirectory() as folder, exact(1):
        compare(Path(folder), options.precision, options.rounds)


def compare(root: Path, precision: str, rounds: int) -> None:
    corpus, tokens = make_corpus(root), SAMPLES * LENGTH
    batch = {"batch_tokens": tokens, "micro_batch_tokens": tokens}
    recipe = make_recipe(root, sequence_length=LENGTH, precision=precision, optimizer="adamw", **batch)
    shape = {"hidden_size": 256, "layers": 6, "heads": 4, "kv_heads": 2, "intermediate_size": 768}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=shape)})
    plan, values = new_values(recipe, corpus)
    dtype = DTYPES[precision]
    learners: dict[Recompute, Learner] = {}
    for mode in MODES:
        spread = Spread(plan.config, dtype, Mesh(alone(), Layout()), How(recompute=mode), values)
        learners[mode] = Learner(spread, Update("adamw", 0.1, (0.9, 0.95), precision), 1.0, SAMPLES)
    rank = Rank(plan.config, Layout(), 0, Shape(SAMPLES, LENGTH, 1, dtype))
    seconds: dict[Recompute, list[float]] = {mode: [] for mode in MODES}
    batches: list[Batch] = []
    with Loader(order_of(recipe, corpus, "train"), corpus.token_files(), stop=rounds + 1) as loader:
        for number, one in enumerate(loader):
            for mode, learner in learners.items():
                spent = processor_seconds(learner, one)
                if number:
                    seconds[mode].append(spent)
            batches.append(one)
    plain = statistics.median(seconds["none"])
    for mode, learner in learners.items():
        told, taken = (
            rank.footprint("adamw", of_all(mode, plan.config.num_hidden_layers)),
            taken_bytes(learner, batches[-1]),
        )
        own = told.peak - told.copy - told.weights - told.gradients - told.optimizer
        more = statistics.median(seconds[mode]) / plain - 1
        print(
            f"{mode:10} activations and passes: told {own / 1e6:.1f} MB, taken {taken / 1e6:.1f} MB · "
            f"a step {100 * more:+.1f}%, {3 * more:+.2f} of a forward pass"
        )


def of_all(mode: Recompute, blocks: int) -> tuple[Recompute, ...]:
    return (mode,) * blocks


def processor_seconds(learner: Learner, batch: Batch) -> float:
    start = time.process_time()
    learner.step(batch, 1e-4)
    return time.process_time() - start


def taken_bytes(learner: Learner, batch: Batch) -> int:
    """At the peak of a step, beyond what lies there before it."""
    live = Live()
    with live:
        learner.step(batch, 1e-4)
    return live.most


if __name__ == "__main__":
    main()
