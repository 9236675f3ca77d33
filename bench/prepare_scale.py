"""Preparing 10 thousand, 100 thousand and 1 million records: time a record and peak memory, stage by stage.

Records are JSON lines of made-up English, 300 to 900 characters, one in fifty a word-edited copy of another; all checks
are on: all signals are scored, near duplicates, personal data masked. Memory is the sum over the process tree of the
memory in use (proportional set size), sampled five times a second. Bars: below 2 GB at a million, not growing with the
number of records; time a record the same within 15%.

Every run is a process of its own, as a user starts it. What a run costs whatever the number of records is measured by
one of 100 records: interpreters, imports, numba, files. What the tokenizer costs is told apart, too: it is trained on
the first 16 MB, and 10,000 records have 7. What is left, over the number of records, is the time a record; by the
clock, and by the processor's (all processes together), which other work on the machine blurs less. `--cold` adds the
first run on a machine, which compiles the kernels.

Use: python bench/prepare_scale.py [--records 10000 100000 1000000] [--workers 2] [--cold]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
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
FEW = 100  # records of the run that shows what a start costs

Json = dict[str, Any]


class Stages(Silent):
    """Remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}  # of this process

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Any]:
        started, used = time.perf_counter(), time.process_time()
        with super().stage(title, total, unit) as advance:
            yield advance
        self.seconds[title] = self.seconds.get(title, 0.0) + time.perf_counter() - started
        self.processor[title] = self.processor.get(title, 0.0) + time.process_time() - used


class Memory(threading.Thread):
    """The largest sum of memory over this process and its children; of this process alone; of that without files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.own_peak, self.own_anonymous = 0, 0, 0
        self.processor = 0.0  # seconds that looking took
        self._end = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self._end.wait(0.2):
            total = own = _used(me)
            total += sum(_used(child) for child in me.children(recursive=True))
            self.peak, self.own_peak = max(self.peak, total), max(self.own_peak, own)
            self.own_anonymous = max(self.own_anonymous, _anonymous())
            self.processor = time.thread_time()

    def stop(self) -> None:
        self._end.set()
        self.join()


def _used(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def _anonymous() -> int:
    """Of this process, without the pages of files, which the kernel takes back when it needs them."""
    (kilobytes,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
    return int(kilobytes) << 10


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


def processor_seconds() -> float:
    """Of this process and of all those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def one_run(folder: Path, workers: int) -> Json:
    """Prepare the recipe in the folder: seconds, processor seconds, by stage, and peak memory."""
    stages, memory = Stages(), Memory()
    memory.start()
    done = prepare(recipe_file.load(folder / "sheaf.yaml"), workers=workers, console=stages)
    memory.stop()
    return {
        "read": done["records"]["read"],
        "stages": stages.seconds,
        "trained": stages.processor["tokenizer"],
        "trained_wall": stages.seconds["tokenizer"],
        "peak": memory.peak,
        "own_peak": memory.own_peak,
        "own_anonymous": memory.own_anonymous,
        "looking": memory.processor,
    }


def prepared(records: int, workers: int, cold: bool = False) -> Json:
    """One run in a process of its own. cold: with no machine code kept from earlier runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_records(folder / "lines", records)
        (folder / "sheaf.yaml").write_text(RECIPE)
        command = [sys.executable, __file__, "--folder", name, "--workers", str(workers)]
        kernels = {"NUMBA_CACHE_DIR": str(folder / "kernels")} if cold else {}
        started, used = time.perf_counter(), processor_seconds()
        told = orjson.loads(
            subprocess.run(command, env=os.environ | kernels, stdout=subprocess.PIPE, check=True).stdout
        )
        assert told["read"] == records
        clocks = {"seconds": time.perf_counter() - started, "processor": processor_seconds() - used - told["looking"]}
        return {**told, **clocks, "records": records, "size": size}


def show(run: Json, start: Json) -> None:
    """start: the run of a few records."""
    stages = ", ".join(f"{title} {taken:.1f}" for title, taken in run["stages"].items())
    wall, processor = (
        run[clock] - start[clock] - run[trained] + start[trained]
        for clock, trained in (("seconds", "trained_wall"), ("processor", "trained"))
    )
    many = run["records"] - start["records"]
    each = f"{1e6 * wall / many:>8.1f} {1e6 * processor / many:>9.1f}" if many > 0 else f"{'':>8} {'':>9}"
    print(
        f"{run['records']:>9,} {run['size'] / 1e6:>5.0f} {run['seconds']:>7.1f} {run['processor']:>9.1f} "
        f"{run['trained_wall']:>9.1f} {1e6 * run['seconds'] / run['records']:>11.1f} {each} "
        f"{run['peak'] / 1e6:>8.0f} {run['own_peak'] / 1e6:>8.0f} {run['own_anonymous'] / 1e6:>8.0f}  {stages}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # a run
    options = parser.parse_args()
    if options.folder:
        sys.stdout.buffer.write(orjson.dumps(one_run(options.folder, options.workers)))
        return
    print(f"Python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
          f"load {os.getloadavg()[0]:.1f}, {options.workers} workers")  # fmt: skip
    print(f"{'records':>9} {'MB':>5} {'seconds':>7} {'processor':>9} {'tokenizer':>9} {'µs/rec. all':>11} "
          f"{'µs/rec.':>8} {'processor':>9} {'peak MB':>8} {'main MB':>8} {'no files':>8}  stages")  # fmt: skip
    prepared(FEW, options.workers)  # what it compiles is kept
    start = prepared(FEW, options.workers)
    show(start, start)
    if options.cold:
        show(prepared(FEW, options.workers, cold=True), start)
    for records in options.records:
        show(prepared(records, options.workers), start)


if __name__ == "__main__":
    main()
