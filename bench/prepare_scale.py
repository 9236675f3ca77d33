"""Preparing 10 thousand, 100 thousand and 1 million records: time a record and peak memory, stage by stage.

Records are JSON lines of made-up English, 300 to 900 characters, one in fifty a word-edited copy of another; all checks
are on: three rule sets that only score, near duplicates, personal data masked. Memory is the sum over the process tree
of the memory in use (proportional set size), sampled five times a second. Bars: below 2 GB at a million, not growing
with the number of records; time a record the same within 15%.

Use: python bench/prepare_scale.py [--records 10000 100000 1000000] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.prepare.pipeline import prepare

RECIPE = """
name: scale
sources: [{name: lines, uri: ./lines, text: text}]
prepare:
  filters: ["score.words >= 0"]
  dedup: {near: 0.8, max_loss: 1}
  privacy: {email: mask, phone: mask, secret: mask}
  tokenizer: {train: bpe, vocab_size: 8192, sample_mb: 16}
"""
FILES = 16


class Stages(Silent):
    """Remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Any]:
        started = time.perf_counter()
        with super().stage(title, total, unit) as advance:
            yield advance
        self.seconds[title] = self.seconds.get(title, 0.0) + time.perf_counter() - started


class Memory(threading.Thread):
    """The largest sum of memory over this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.own_peak = 0, 0
        self._end = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self._end.wait(0.2):
            total = own = _used(me)
            total += sum(_used(child) for child in me.children(recursive=True))
            self.peak, self.own_peak = max(self.peak, total), max(self.own_peak, own)

    def stop(self) -> None:
        self._end.set()
        self.join()


def _used(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def vocabulary(dice: random.Random, words: int = 20_000) -> list[str]:
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (n + 2) for n in range(len(letters))]
    return ["".join(dice.choices(letters, weights, k=dice.randint(2, 10))) for _ in range(words)]


def write_records(folder: Path, records: int) -> int:
    """Bytes of text written. Files grow with the number of records, their number does not."""
    dice = random.Random(records)
    words = vocabulary(random.Random(1))
    weights = [1 / (n + 5) for n in range(len(words))]
    cumulative = [0.0]
    for weight in weights:
        cumulative.append(cumulative[-1] + weight)
    folder.mkdir()
    size = 0
    text = ""
    files = [(folder / f"{n:02d}.jsonl").open("wb") for n in range(FILES)]
    for n in range(records):
        if n % 50 == 1:  # the one before, with a word or two changed
            parts = text.split(" ")
            parts[dice.randrange(len(parts))] = dice.choice(words)
            text = " ".join(parts)
        else:
            text = " ".join(dice.choices(words, cum_weights=cumulative[1:], k=dice.randint(50, 150)))
        size += len(text)
        files[n % FILES].write(orjson.dumps({"id": n, "text": text}) + b"\n")
    for file in files:
        file.close()
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
          f"load {os.getloadavg()[0]:.1f}, {options.workers} workers")  # fmt: skip
    print(f"{'records':>9} {'MB':>6} {'seconds':>8} {'µs/record':>9} {'MB/s':>6} {'peak MB':>8} {'main MB':>8}  stages")
    for records in options.records:
        with tempfile.TemporaryDirectory() as name:
            size = write_records(Path(name) / "lines", records)
            recipe = recipe_file.loads(RECIPE, Path(name))
            stages, memory = Stages(), Memory()
            memory.start()
            started = time.perf_counter()
            done = prepare(recipe, workers=options.workers, console=stages)
            seconds = time.perf_counter() - started
            memory.stop()
            shown = ", ".join(f"{title} {taken:.1f}" for title, taken in stages.seconds.items())
            assert done["records"]["read"] == records
            print(
                f"{records:>9,} {size / 1e6:>6.0f} {seconds:>8.1f} {1e6 * seconds / records:>9.1f} "
                f"{size / 1e6 / seconds:>6.1f} {memory.peak / 1e6:>8.0f} {memory.own_peak / 1e6:>8.0f}  {shown}",
                flush=True,
            )


if __name__ == "__main__":
    main()
