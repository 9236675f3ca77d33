"""What `layout: auto` expects of each layout of two ranks, beside how long its steps took.

Real runs of `sheaf train` on text of this package, two ranks of one thread each on this machine, steps 5 to 12 of each,
their median; the estimate is that of the ranks themselves, from what they measured of each other. Read the order of the
layouts and the ratios, on a quiet machine.

Use: python bench/auto_layout.py [--preset small] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import sheaf
from sheaf.forecast.here import measured
from sheaf.parallel.cost import step_seconds
from sheaf.parallel.layout import Facts, describe, possible
from sheaf.train import journal
from sheaf.train.plan import plan_of
from sheaf.train.run import Run
from sheaf.train.setup import facts_of

STEPS, SKIPPED = 12, 4
RECIPE = """
name: layouts
sources: [{{name: package, uri: {package}, include: ["**/*.py"]}}]
prepare: {{tokenizer: {{train: bpe, vocab_size: 4096}}}}
model: {{preset: {preset}}}
train:
  {{sequence_length: 256, batch_tokens: 4096, micro_batch_tokens: 1024, budget: {{steps: {steps}}}, compile: "off"}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "sheaf.yaml"
        package = Path(sheaf.__file__).parent
        recipe.write_text(RECIPE.format(package=package, preset=options.preset, steps=STEPS))
        sheaf_command(folder, "prepare")
        facts = facts_here(sheaf_command(folder, "train", "--nproc", "2"))
        machine = measured(facts, 2).machine
        layouts = possible(2, facts)
        taken: dict[str, list[float]] = {describe(one): [] for one in layouts}
        for _ in range(options.rounds):
            for one in layouts:
                run = sheaf_command(folder, "train", "--nproc", "2", f"train.layout={describe(one)}")
                taken[describe(one)].append(seconds_of(run))
    print(
        f"{machine.rates.layers / 1e9:.0f} GFLOP/s a rank, {machine.host.bytes_per_second / 1e6:.0f} MB/s; load",
        os.getloadavg()[0],
    )
    for one in layouts:
        median, estimate = statistics.median(taken[describe(one)]), step_seconds(one, facts, machine)
        print(f"{describe(one):16} estimate {estimate:6.3f} s   measured {median:6.3f} s   {estimate / median:5.2f}")


def sheaf_command(folder: Path, *words: str) -> Path:
    """Run it; the newest run's folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sheaf", words[0], str(folder / "sheaf.yaml"), *words[1:]]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return max((folder / "workspace" / "runs").glob("layouts-*"), default=folder)


def seconds_of(run: Path) -> float:
    return statistics.median(line["seconds"] for line in journal.read_lines(run / "journal.jsonl")[SKIPPED:])


def facts_here(folder: Path) -> Facts:
    run = Run.open(folder)
    return facts_of(run.recipe, plan_of(run.recipe, run.corpus()), run.settings, 2)


if __name__ == "__main__":
    main()
