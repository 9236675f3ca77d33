"""Training step of the `small` shape: tokens/s of ours against the Hugging Face Trainer, and time to the first step.

All peers: the same Llama config, 16 × 512 random tokens a step, bf16 compute with fp32 weights, AdamW fused, clip
1.0, the same threads. Each is a process of its own that waits while another is timed; they take turns round by round,
and what is printed last is the median over rounds of the ratio within a round: a machine that slows down slows all of
a round.

    python bench/step.py [--rounds 5] [--steps 2] [--peers ours,ours-eager,hf,hf-compiled] [--batch 16]

Time to the first step counts from the start of the process, imports included; run twice to see it with warm caches.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
LENGTH, VOCABULARY = 512, 16384
PEERS = ("ours", "ours-eager", "hf", "hf-compiled")
BARS = {"hf": 2.0, "hf-compiled": 1.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of one turn")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None:
        compare(options.peers.split(","), options.rounds, options.steps, options.batch)
    elif options.worker.startswith("ours"):
        train_ours(options.worker == "ours", options.batch)
    else:
        train_transformers(options.worker == "hf-compiled", options.batch)


@dataclass(frozen=True)
class Turn:
    """Wall and processor seconds of one step."""

    wall: float
    processor: float


def compare(peers: list[str], rounds: int, steps: int, batch: int) -> None:
    print(f"{platform.processor() or platform.machine()} · {cpu_name()} · batch {batch} × {LENGTH} · bf16")
    workers: dict[str, subprocess.Popen[str]] = {}
    for peer in peers:
        command = [sys.executable, __file__, "--worker", peer, "--batch", str(batch)]
        workers[peer] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = receive(workers[peer])
        print(f"{peer:12} first step after {ready['first_step']:.1f} s · {ready['versions']}", flush=True)
    turns: dict[str, list[Turn]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            send(workers[peer], str(steps))
            answer = receive(workers[peer])
            turns[peer].append(Turn(answer["wall"] / steps, answer["processor"] / steps))
    for worker in workers.values():
        send(worker, "0")
        worker.wait()
    show(turns, batch * LENGTH)


def show(turns: dict[str, list[Turn]], step_tokens: int) -> None:
    for peer, of_peer in turns.items():
        wall, processor = (
            statistics.median(values) for values in ([t.wall for t in of_peer], [t.processor for t in of_peer])
        )
        print(f"{peer:12} {step_tokens / wall:7.0f} tokens/s · {wall:.2f} s a step · {processor:.2f} processor seconds")
    if "ours" not in turns:
        return
    for peer, of_peer in turns.items():
        if peer == "ours":
            continue
        ratios = [theirs.wall / ours.wall for theirs, ours in zip(of_peer, turns["ours"], strict=True)]
        busy = [theirs.processor / ours.processor for theirs, ours in zip(of_peer, turns["ours"], strict=True)]
        bar = f" · bar {BARS[peer]}" if peer in BARS else ""
        print(
            f"ours / {peer:12} {statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})"
            f" · by processor time {statistics.median(busy):.2f}×{bar}"
        )


def train_ours(compiled: bool, batch: int) -> None:
    """What `sheaf train` does in a step: loader, forward, backward, reduction, clipping, update, exact kernels."""
    import numpy as np
    import torch

    from sheaf.corpus.documents import Documents
    from sheaf.model.init import starting_values
    from sheaf.model.memory import keep_memory
    from sheaf.order.loader import Loader
    from sheaf.order.order import Order
    from sheaf.parallel.mesh import Mesh
    from sheaf.parallel.parallelize import How, Spread
    from sheaf.parallel.ranks import alone
    from sheaf.recipe import Layout
    from sheaf.train.learner import Learner
    from sheaf.train.optimizer import Update
    from sheaf.train.setup import exact

    keep_memory()
    # Long documents, so that every sample is one run of LENGTH tokens: the same attention as the peer computes.
    n, long = 64, 32 * LENGTH + 1
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, n * long, dtype=np.uint16)
    documents = Documents(
        id=np.arange(n * 16, dtype=np.int64).astype(np.uint8).reshape(n, 16),
        source=np.zeros(n, np.int32),
        shard=np.zeros(n, np.int32),
        offset=np.arange(n, dtype=np.int64) * long,
        length=np.full(n, long, np.int64),
    )
    order = Order.build(
        documents,
        ["bench"],
        "bench",
        sequence_length=LENGTH,
        batch=batch,
        seed=0,
        mixture={},
        held_out=0.0,
        cache=None,
    )
    how = How(compile=compiled)
    spread = Spread(shape(), torch.bfloat16, Mesh(alone(), Layout()), how, starting_values(shape(), 0))
    learner = Learner(spread, Update("adamw", 0.1, (0.9, 0.95), "bf16"), 1.0, batch)
    with exact(torch.get_num_threads()), Loader(order, [tokens]) as loader:
        batches = iter(loader)
        learner.step(next(batches), 1e-4)
        answer(
            first_step=time.perf_counter() - STARTED,
            versions=f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        )
        serve(lambda steps: [learner.step(next(batches), 1e-4) for _ in range(steps)])


def train_transformers(compiled: bool, batch: int) -> None:
    import torch
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Turns(TrainerCallback):
        """Ends a turn at the end of its last step, and waits there for the next."""

        left, since = 0, (0.0, 0.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                threads = torch.get_num_threads()
                versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {threads} threads"
                answer(first_step=time.perf_counter() - STARTED, versions=versions)
            elif self.left > 1:
                self.left -= 1
                return
            else:
                answer(wall=time.perf_counter() - self.since[0], processor=time.process_time() - self.since[1])
            self.left = int(sys.stdin.readline() or 0)
            control.should_training_stop = self.left == 0
            self.since = time.perf_counter(), time.process_time()

    ids = random_tokens(batch)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**shape().to_hf()))
    model.float()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch,
            max_steps=1_000_000,
            learning_rate=1e-4,
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            bf16=True,
            use_cpu=True,
            torch_compile=compiled,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows = [{"input_ids": row, "labels": row} for row in ids] * 1000
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Turns()]).train()


def serve(run: Callable[[int], object]) -> None:
    while steps := int(sys.stdin.readline() or 0):
        wall, processor = time.perf_counter(), time.process_time()
        run(steps)
        answer(wall=time.perf_counter() - wall, processor=time.process_time() - processor)


def shape() -> Any:
    from sheaf.model.config import preset

    return preset("small", vocab_size=VOCABULARY, family="llama", max_positions=LENGTH, end_of_text=0)


def random_tokens(batch: int) -> Any:
    import torch

    return torch.randint(0, VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(0))


def answer(**values: Any) -> None:
    print("\n>" + json.dumps(values), flush=True)


def receive(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(">"):
            return json.loads(line[1:])
    raise SystemExit(f"a peer ended with {worker.wait()}; its message is above")


def send(worker: subprocess.Popen[str], text: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(text + "\n")
    worker.stdin.flush()


def cpu_name() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(':')[1].strip()} × {len(names)}" if names else "unknown processor"


if __name__ == "__main__":
    main()
