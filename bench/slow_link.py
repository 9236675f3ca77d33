"""`sheaf train` on two ranks in two network namespaces, over a link of a given rate: what each way of summing costs.

For every rate and way: tokens/s (median step, the first two left out), its ratio to the unlimited link with fp32
gradients, bytes that rank 0 sends a step, seconds in communication and how much of them was hidden behind computing.
With --loss N also the training loss after N steps, mean of the last ten, of each way on the unlimited link: what a way
computes does not depend on the link. Model and batch are those of a 17 M parameter Llama (384 wide, 6 layers, tied,
vocabulary 16,384), 16 samples of 512 tokens a step, AdamW, bf16; one thread a rank. The text is the sources of the
Python that runs this. Needs root, `ip` and `tc` (tbf). What was measured is kept under --folder and not measured again.

    python bench/slow_link.py [--ways fp32,bf16,int8,two-bit,powersgd,topk] [--rates unlimited,100mbit,20mbit]
                              [--steps 10] [--loss 0] [--folder /tmp/sheaf-slow-link]
                              [--set powersgd:train.communication.rank=4 …]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAYS, RATES = ("fp32", "bf16", "int8", "two-bit", "powersgd", "topk"), ("unlimited", "100mbit", "20mbit")
BARS = {"100mbit": 0.85, "20mbit": 0.60}
LOSS_BAR = 0.01
WARM_UP = 2  # steps that fill caches
RECIPE = """
name: slow-link
sources:
  - {{name: python, uri: {sources}, include: ["**/*.py"], exclude: ["site-packages/**", "**/site-packages/**"]}}
prepare: {{tokenizer: {{train: bpe, vocab_size: 16384}}}}
model: {{preset: small, family: llama, hidden_size: 384, layers: 6, heads: 6, kv_heads: 6, intermediate_size: 1024,
  tied: true}}
train:
  layout: {{data: 2}}
  sequence_length: 512
  batch_tokens: 8192
  optimizer: adamw
  learning_rate: 0.001
  schedule: {{warmup: 0.1, final: 0}}
  precision: bf16
  compile: "off"
  budget: {{steps: 10}}
  evaluate_every: 100000
  checkpoint_every: 100000
workspace: {workspace}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rates", default=",".join(RATES))
    parser.add_argument("--steps", type=int, default=10, help="of a measurement of speed; 0: none")
    parser.add_argument("--loss", type=int, default=0, help="steps of a measurement of loss; 0: none")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sheaf-slow-link")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe for one way, WAY:KEY=VALUE")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("tc"):
        print("network namespaces and limited links need root, `ip` and `tc`: nothing was measured")
        return
    recipe = prepare(options.folder)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; one thread a rank", flush=True)
    ways = options.ways.split(",")
    if options.steps:
        speeds(recipe, ways, options.rates.split(","), options.steps, options.set)
    if options.loss:
        losses(recipe, ways, options.loss, options.set)


def prepare(folder: Path) -> Path:
    """The corpus, once. Returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        sources = sysconfig.get_paths()["stdlib"]
        recipe.write_text(RECIPE.format(sources=sources, workspace=folder / "workspace"))
        sheaf("prepare", str(recipe))
    return recipe


def speeds(recipe: Path, ways: Sequence[str], rates: Sequence[str], steps: int, settings: Sequence[str]) -> None:
    print(f"{'link':10} {'gradients':10} tokens/s  ratio   s/step  CPU s/step  MB sent  in comm.  hidden", flush=True)
    best = 0.0
    for rate in rates:
        for way in ways:
            if rate != "unlimited" and way == "fp32":
                found = measured(recipe, rate, way, max(WARM_UP + 2, steps // 3), settings)
            else:
                found = measured(recipe, rate, way, steps, settings)
            best = best or found["tokens_per_second"]
            ratio = found["tokens_per_second"] / best
            bar = BARS.get(rate, 0.0)
            print(
                f"{rate:10} {way:10} {found['tokens_per_second']:8.0f} {ratio:6.2f}  {found['seconds']:7.2f}"
                f"  {found['processor']:10.2f} {found['sent'] / 1e6:8.2f}  {found['communication']:7.2f} s"
                f"  {found['hidden']:5.2f} s" + (f"   {'reaches' if ratio >= bar else 'below'} {bar}" if bar else ""),
                flush=True,
            )


def losses(recipe: Path, ways: Sequence[str], steps: int, settings: Sequence[str]) -> None:
    print(f"loss after {steps} steps, mean of the last ten", flush=True)
    exact = None
    for way in ways:
        lines = train(recipe, "unlimited", way, steps, settings)[0]
        loss = statistics.mean(line["loss"] for line in lines[-10:])
        exact = exact or loss
        off = loss / exact - 1
        print(f"{way:10} {loss:.4f}  {100 * off:+.2f}%  {'within' if off <= LOSS_BAR else 'beyond'} 1%", flush=True)


def measured(recipe: Path, rate: str, way: str, steps: int, settings: Sequence[str]) -> dict[str, float]:
    lines, processor = train(recipe, rate, way, steps, settings)
    later = lines[WARM_UP:]

    def middle(name: str) -> float:
        return statistics.median(line[name] for line in later)

    hidden = middle("hidden_communication")
    return {
        "tokens_per_second": middle("tokens_per_second"),
        "seconds": middle("seconds"),
        "sent": middle("bytes_sent"),
        "hidden": hidden,
        "communication": hidden + middle("communication_seconds"),
        "processor": processor / len(lines),
    }


def train(recipe: Path, rate: str, way: str, steps: int, settings: Sequence[str]) -> tuple[list[dict[str, Any]], float]:
    """Run `sheaf train` over a link. Returns the lines of its journal, and processor seconds of both ranks."""
    own = [f"train.communication.gradients={way}", f"train.budget.steps={steps}"]
    chosen = [one.partition(":")[2] for one in settings if one.startswith(f"{way}:")]
    started = sheaf("train", str(recipe), "--nproc", "2", "--start-only", "--json", *own, *chosen)
    run = Path(json.loads(started.splitlines()[-1])["run"])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with link(rate) as ends:
        ranks = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-m", "sheaf.train.worker", str(run)],
                env={**os.environ, **environment(rank, device)},
                stderr=(run / f"rank-{rank}.txt").open("w"),
            )
            for rank, (name, device) in enumerate(ends)
        ]
        codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"the ranks of {run} ended with {codes}; what they said is there, in rank-*.txt")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return lines, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def environment(rank: int, device: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "10.98.0.1",
        "MASTER_PORT": str(20000 + os.getpid() % 20000),
        "GLOO_SOCKET_IFNAME": device,
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def link(rate: str) -> Generator[list[tuple[str, str]]]:
    """Two namespaces, joined by a pair of devices that let so much through each way: (namespace, device) of each."""
    number = os.getpid() % 100000
    ends = [(f"slow{number}{end}", f"v{number}{end}") for end in "ab"]
    try:
        for name, _ in ends:
            command("ip", "netns", "add", name)
        command("ip", "link", "add", ends[0][1], "type", "veth", "peer", "name", ends[1][1])
        for at, (name, device) in enumerate(ends, 1):
            command("ip", "link", "set", device, "netns", name)
            command("ip", "-n", name, "addr", "add", f"10.98.0.{at}/24", "dev", device)
            command("ip", "-n", name, "link", "set", device, "up")
            command("ip", "-n", name, "link", "set", "lo", "up")
            if rate != "unlimited":
                shape = ["rate", rate, "burst", "32kbit", "latency", "400ms"]
                command("tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf", *shape)
        yield ends
    finally:
        for name, _ in ends:  # a namespace takes its device along
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def sheaf(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "sheaf", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"sheaf {words[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
