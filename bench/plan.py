"""`sheaf plan` beside what runs took: peak memory of the rank with most, seconds of a step, seconds of the whole run.

Real runs of `sheaf train` on text of this package, on this machine's processes: combinations of model, sequence length,
batch, precision, activation checkpointing and layout on 1, 2 and 4 ranks. Each is planned first (`sheaf plan --json`,
with its probe), then run; the step is the median of the later half. Ratios are fact over forecast; of a machine that
does something else meanwhile they mean little. It takes about two minutes a combination.

With --limited each run is put into a control group (which takes root) that may have 15% more than the ranks' forecasts
come to: a run that the plan says will fit by that must end as if it had the machine, without being killed or shortening
its passes.

Use: python bench/plan.py [--only N] [--steps 30] [--limited]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sheaf
from sheaf.train import journal

RECIPE = """
name: planned
sources: [{{name: package, uri: {package}, include: ["**/*.py"]}}]
prepare: {{tokenizer: {{train: bpe, vocab_size: 4096}}}}
model: {{preset: tiny}}
train: {{budget: {{steps: {steps}}}, compile: "off", evaluate_tokens: 16384}}
"""


@dataclass(frozen=True)
class Combination:
    """words: changes of the recipe."""

    ranks: int
    preset: str
    length: int
    batch_tokens: int
    micro_tokens: int
    precision: str
    recompute: str
    optimizer: str
    layout: str

    @property
    def words(self) -> list[str]:
        return [
            f"model.preset={self.preset}",
            f"train.sequence_length={self.length}",
            f"train.batch_tokens={self.batch_tokens}",
            f"train.micro_batch_tokens={self.micro_tokens}",
            f"train.precision={self.precision}",
            f"train.activation_checkpointing={self.recompute}",
            f"train.optimizer={self.optimizer}",
            f"train.layout={self.layout}",
        ]


COMBINATIONS = (
    Combination(1, "tiny", 256, 8192, 4096, "bf16", "none", "muon", "{data: 1}"),
    Combination(2, "tiny", 512, 8192, 2048, "fp32", "none", "adamw", "{data: 2}"),
    Combination(1, "small", 512, 8192, 8192, "bf16", "full", "adamw", "{data: 1}"),
    Combination(1, "small", 256, 8192, 4096, "fp32", "none", "muon", "{data: 1}"),
    Combination(1, "small", 1024, 8192, 8192, "bf16", "selective", "muon", "{data: 1}"),
    Combination(1, "base", 512, 4096, 2048, "bf16", "none", "adamw", "{data: 1}"),
    Combination(2, "small", 512, 8192, 4096, "bf16", "none", "muon", "{shard: 2}"),
    Combination(2, "small", 512, 8192, 2048, "bf16", "none", "adamw", "{tensor: 2}"),
    Combination(2, "small", 1024, 8192, 2048, "fp32", "selective", "adamw", "{pipeline: 2}"),
    Combination(2, "small", 1024, 8192, 4096, "bf16", "none", "muon", "{context: 2}"),
    Combination(4, "tiny", 256, 8192, 2048, "bf16", "none", "muon", "{data: 4}"),
    Combination(4, "small", 512, 8192, 2048, "bf16", "full", "adamw", "{data: 2, tensor: 2}"),
    Combination(4, "small", 512, 8192, 1024, "fp32", "none", "muon", "{shard: 2, pipeline: 2}"),
)
PARTS = ("memory", "step", "run")
ROOM = 1.15  # over the forecast, which a run that is said to fit must need no more of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, default=len(COMBINATIONS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--limited", action="store_true")
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = Path(sheaf.__file__).parent
        (folder / "sheaf.yaml").write_text(RECIPE.format(package=package, steps=options.steps))
        command(folder, "prepare")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for one in COMBINATIONS[: options.only]:
            line = [f"{one.ranks} × {one.layout} {' '.join(one.words[:-1])}".replace("train.", "")]
            for part, (forecast, fact) in compared(folder, one, options.limited).items():
                ratios[part].append(fact / forecast)
                line.append(f"{part} {forecast:.3g} → {fact:.3g} ({fact / forecast:.2f})")
            print("; ".join(line), flush=True)
    for part, found in ratios.items():
        off = [abs(ratio - 1) for ratio in found]
        print(f"{part}: off by {statistics.median(off):.0%} at the median, {max(off):.0%} at most")


def compared(folder: Path, one: Combination, limited: bool) -> dict[str, tuple[float, float]]:
    """(forecast, fact) of each part. Raises RuntimeError where a limited run did not go as forecast."""
    words = ["--nproc", str(one.ranks), *one.words]
    told: dict[str, Any] = json.loads(command(folder, "plan", "--json", *words))["training"]
    begun = time.monotonic()
    room = one.ranks * told["memory_bytes"]["value"] * ROOM if limited else 0
    with group(int(room)) as members:
        command(folder, "train", "--json", *words, members=members)
    seconds = time.monotonic() - begun
    run = max((folder / "workspace" / "runs").glob("planned-*"))
    if limited and (run / "restarts.jsonl").exists():
        raise RuntimeError(f"out of memory although it was to fit: {(run / 'restarts.jsonl').read_text()}")
    lines = journal.read(run)
    step = statistics.median(line["seconds"] for line in lines[len(lines) // 2 :])
    peak = max(line["peak_memory_bytes"] for line in lines)
    return {
        "memory": (told["memory_bytes"]["value"], peak),
        "step": (told["step_seconds"]["value"], step),
        "run": (told["seconds"]["value"], seconds),
    }


@contextlib.contextmanager
def group(most: int) -> Generator[str]:
    """The file that puts a process into a control group of so many bytes; "" for no limit."""
    if not most:
        yield ""
        return
    old = Path("/sys/fs/cgroup/memory")
    made = (old if old.is_dir() else old.parent) / f"sheaf-plan-{os.getpid()}"
    made.mkdir()
    try:
        (made / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")).write_text(str(most))
        yield str(made / "cgroup.procs")
    finally:
        made.rmdir()


def command(folder: Path, verb: str, *words: str, members: str = "") -> bytes:
    """What it prints. members: the file of a control group which it joins first."""
    line = [sys.executable, "-m", "sheaf", verb, str(folder / "sheaf.yaml"), *words]
    join = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', members] if members else []
    return subprocess.run([*join, *line], cwd=folder, check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
