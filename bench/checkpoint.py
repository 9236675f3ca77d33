"""What a checkpoint costs the training that goes on: seconds of the training thread, and processor time of all.

    python bench/checkpoint.py                    preset small, AdamW, one checkpoint every 100 steps assumed
    python bench/checkpoint.py --preset tiny --rounds 5

A step is what `sheaf train` does, a save what it does too: the tensors are copied, then hashed, written and synced by a
thread while the next steps go on. In turns, within one process: some steps without a save, and a save with as many
steps behind it, until it is on the disk. Lost is what the second took more, over 100 steps: by the clock, and by
processor time, which other work on the machine disturbs less. The bar is 2%.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "train"))

import torch
from training_corpus import make_corpus, make_recipe

from sheaf.model.memory import keep_memory
from sheaf.order.loader import Loader
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import alone, threads_for
from sheaf.recipe import Layout
from sheaf.train.checkpoint import CheckpointWriter
from sheaf.train.learner import Learner
from sheaf.train.optimizer import Update
from sheaf.train.plan import new_values
from sheaf.train.setup import DTYPES, exact, order_of

EVERY = 100


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock and of all processors."""

    clock: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int, default=8, help="samples of 512 tokens in a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    options = parser.parse_args()
    print(f"{platform.machine()} · torch {torch.__version__} · {threads_for(1)} threads · {options.preset}")
    with tempfile.TemporaryDirectory() as folder, exact(threads_for(1)):
        compare(Path(folder), options)


def compare(root: Path, options: argparse.Namespace) -> None:
    keep_memory()
    corpus = make_corpus(root, documents=4000)
    tokens = 512 * options.batch
    batch = {"batch_tokens": tokens, "micro_batch_tokens": tokens}
    recipe = make_recipe(root, sequence_length=512, precision=options.precision, **batch)
    model = recipe.model.model_validate({"preset": options.preset})
    recipe = recipe.model_copy(update={"model": model})
    plan, values = new_values(recipe, corpus)
    spread = Spread(plan.config, DTYPES[options.precision], Mesh(alone(), Layout()), How(), values)
    learner = Learner(spread, Update(options.optimizer, 0.1, (0.9, 0.95), options.precision), 1.0, options.batch)
    writer = CheckpointWriter(root, keep=2)
    without: list[Spent] = []
    extra: list[Spent] = []
    pauses: list[float] = []
    with Loader(order_of(recipe, corpus, "train"), corpus.token_files()) as loader:
        batches = iter(loader)

        def steps() -> None:
            for _ in range(options.steps):
                learner.step(next(batches), 1e-4)

        steps()
        for turn in range(options.rounds):
            without.append(spent(steps))

            def save_and_steps(step: int = turn + 1) -> None:
                start = time.perf_counter()
                learner.check_ranks_agree()
                writer.save({"step": step}, learner.state())
                pauses.append(time.perf_counter() - start)
                steps()
                writer.wait()

            with_save = spent(save_and_steps)
            extra.append(Spent(with_save.clock - without[-1].clock, with_save.processor - without[-1].processor))

    def save_alone() -> None:
        learner.check_ranks_agree()
        writer.save({"step": options.rounds + 1}, learner.state())
        writer.wait()

    idle = [spent(save_alone) for _ in range(3)]
    writer.close()
    size = sum(file.stat().st_size for file in writer.last.iterdir()) if writer.last else 0
    show(size, options.steps, without, extra, pauses)
    processor = statistics.median(one.processor for one in without) / options.steps
    alone_seconds = statistics.median(one.processor for one in idle)
    print(
        f"with nothing beside it a save takes {statistics.median(one.clock for one in idle):.2f} s, "
        f"{alone_seconds:.3f} processor seconds: {100 * alone_seconds / (EVERY * processor):.2f}% of {EVERY} steps"
    )


def spent(work: Callable[[], None]) -> Spent:
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - clock, time.process_time() - processor)


def show(size: int, steps: int, without: list[Spent], extra: list[Spent], pauses: list[float]) -> None:
    clock = statistics.median(one.clock for one in without) / steps
    processor = statistics.median(one.processor for one in without) / steps
    print(f"a step {clock:.2f} s, {processor:.2f} processor seconds; a checkpoint {size / 1e6:.0f} MB")
    print(f"training thread held for {statistics.median(pauses):.3f} s (copy of the tensors)")
    lost = statistics.median(one.clock for one in extra)
    busy = statistics.median(one.processor for one in extra)
    print(f"a save costs {lost:.2f} s by the clock, {busy:.2f} processor seconds")
    print(
        f"of {EVERY} steps: {100 * statistics.median(pauses) / (EVERY * clock):.3f}% held, "
        f"{100 * lost / (EVERY * clock):.2f}% by the clock, {100 * busy / (EVERY * processor):.2f}% by processor time "
        "· bar 2%"
    )


if __name__ == "__main__":
    main()
