"""What the reader costs over reading, decompressing and decoding alone: plain text, JSON Lines, CSV; and small files.

For each input two sides take turns, the best of TURNS counts. The floor, in this process: read the file, decompress it
(zlib), and decode it: UTF-8 for text, `orjson.loads` of each line, `csv.reader`; nothing is kept. Ours: the sandbox and
its child, with detection, decoding, normalising, two digests, Arrow over the socket, checks, and its kernels loaded in
the turn that counts. Prints MB a second and the ratios of processor and wall-clock time; the bar is 2. Then the reading
stage of `sheaf prepare` over files of 2 KB, on two workers, with the shards it writes; the bar is 5,000 files a second.
Inputs are made in a temporary folder. Run:
    python bench/intake.py [MB of each large file, default 64] [number of small files, default 100,000]
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import platform
import random
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import orjson
import psutil
import pyarrow as pa

from sheaf.corpus.workspace import Workspace
from sheaf.engine.local import LocalEngine
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.prepare import read
from sheaf.recipe import Limits, Recipe
from sheaf.sources.base import Item
from sheaf.sources.registry import open_source

TURNS = 5
PLAIN, ACCENTS = "etaoinshrdlucmfw", "etaoinéàèêôçüñ"


def paragraphs(letters: str) -> list[str]:
    """2,000 of some 180 characters, of seeded random words: together more than zlib looks back."""
    dice = random.Random(1)
    words = ["".join(dice.choices(letters if n % 8 == 0 else PLAIN, k=dice.randint(2, 9))) for n in range(5000)]
    return [" ".join(dice.choices(words, k=28)).capitalize() + ".\n" for _ in range(2000)]


ENGLISH, FRENCH = paragraphs(PLAIN), paragraphs(ACCENTS)
Seconds = tuple[float, float]  # processor, wall


def small_files(folder: Path, number: int) -> None:
    """Of 2 KB, a thousand to a folder."""
    for i in range(number):
        if i % 1000 == 0:
            (folder / f"{i // 1000:03d}").mkdir(parents=True)
        (folder / f"{i // 1000:03d}/{i:06d}.txt").write_text(f"Note {i}\n" + text(i, 11))


def write(path: Path, size: int, part: Callable[[int], bytes], head: bytes = b"") -> Path:
    """A file of about so many bytes; gzipped (level 6) if its name says so."""
    data = io.BytesIO()
    data.write(head)
    row = 0
    while data.tell() < size:
        data.write(part(row))
        row += 1
    path.write_bytes(gzip.compress(data.getvalue(), 6) if path.suffix == ".gz" else data.getvalue())
    return path


def text(row: int, number: int, pool: list[str] = ENGLISH) -> str:
    """So many paragraphs."""
    return "".join(pool[(row * 7 + n) % len(pool)] for n in range(number))


def english(row: int) -> bytes:
    return text(row, 10).encode()


def french(row: int) -> bytes:
    return text(row, 10, FRENCH).encode()


def json_line(row: int) -> bytes:
    return orjson.dumps({"id": row, "text": f"Row {row}. " + text(row, 1 + row % 8), "lang": "en"}) + b"\n"


def short_row(row: int) -> bytes:
    quoted = " and a word in quotes" if row % 4 == 0 else ""
    return f'{row},"{text(row, 1).strip()}{quoted}",en\n'.encode()


def long_row(row: int) -> bytes:
    return f'{row},"Row {row}. {text(row, 1 + row % 8).replace(chr(10), " ")}",en\n'.encode()


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return zlib.decompress(data, 31) if path.suffix == ".gz" else data


def floor_text(path: Path) -> None:
    content(path).decode()


def floor_json(path: Path) -> None:
    for line in io.BytesIO(content(path)):
        orjson.loads(line)


def floor_csv(path: Path) -> None:
    for _ in csv.reader(io.TextIOWrapper(io.BytesIO(content(path)), encoding="utf-8", newline="")):
        pass


def cpu_seconds() -> float:
    """Of this process, of its children, and of theirs."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return total + ended.ru_utime + ended.ru_stime


def timed(run: Callable[[], None]) -> Seconds:
    cpu, wall = cpu_seconds(), time.perf_counter()
    run()
    return cpu_seconds() - cpu, time.perf_counter() - wall


def compare(label: str, path: Path, floor: Callable[[Path], None], sandbox: Sandbox, expanded: int) -> None:
    records = 0

    def ours() -> None:
        nonlocal records
        with path.open("rb") as file:
            items = [ItemInput(file, path.name, path.stat().st_size)]
            parts = list(sandbox.parse_in_parts(items, ParseOptions(), path.parent))
        records = sum(len(part.records) + sum(item.rows for item in part.long) for part in parts)
        for part in parts:
            for item in part.long:
                item.spool.close()

    sides: list[tuple[Seconds, Seconds]] = [(timed(lambda: floor(path)), timed(ours)) for _ in range(TURNS)]
    best = [[min(turn[side][clock] for turn in sides) for clock in (0, 1)] for side in (0, 1)]
    rates = [expanded / 1e6 / seconds for side in best for seconds in side]
    print(
        f"{label:<22} {records:>7} records  floor {rates[1]:>6.0f} MB/s  ours {rates[3]:>6.0f} MB/s  "
        f"ours/floor: {best[1][0] / best[0][0]:>5.2f} of processor time, {best[1][1] / best[0][1]:>5.2f} of wall clock"
    )


def large_files(folder: Path, size: int) -> None:
    head = b"id,text,lang\n"
    cases = [
        ("plain text", "t.txt", english, b"", floor_text),
        ("accented text", "f.txt", french, b"", floor_text),
        ("JSON Lines", "j.jsonl", json_line, b"", floor_json),
        ("CSV, rows of 800 bytes", "l.csv", long_row, head, floor_csv),
        ("CSV, rows of 200 bytes", "s.csv", short_row, head, floor_csv),
    ]
    with Sandbox(Limits(record_mb=2 * (size >> 20) + 64)) as sandbox:
        cpu, wall = timed(lambda: print("held:", ", ".join(name for name, holds in sandbox.level().items() if holds)))
        print(f"start of the child: {cpu:.2f} s of processor time, {wall:.2f} s")
        for label, name, part, first, floor in cases:
            for suffix in ("", ".gz"):
                path = write(folder / (name + suffix), size, part, first)
                compare(label + suffix, path, floor, sandbox, len(content(path)))
                path.unlink()


def reading_stage(folder: Path, number: int, workers: int = 2) -> None:
    small_files(folder / "small", number)
    recipe = Recipe.model_validate({"name": "bench", "sources": [{"name": "small", "uri": str(folder / "small")}]})
    found: list[Item] = []
    listing = timed(lambda: found.extend(i for i in open_source(recipe.sources[0]).list_items() if isinstance(i, Item)))
    keys = read.Keys(recipe)
    workspace = Workspace(folder / "workspace")
    engine = LocalEngine(workers)

    def stage() -> None:
        batches = read.batches([keys.listed(item) for item in found])
        tasks = (read.task(workspace, recipe, recipe.sources[0], batch) for batch in batches)
        for _ in engine.run(tasks):
            pass

    reading = timed(stage)
    engine.close()

    def floor() -> None:
        for item in found:
            with open(item.uri, "rb") as file:
                file.read().decode()

    bare = timed(floor)
    for label, (cpu, wall) in (("listing", listing), ("reading stage", reading), ("open, read, decode", bare)):
        print(
            f"{number} files of 2 KB, {label:<18} {wall:>6.2f} s  {number / wall:>7.0f} files/s"
            f"  ({number / cpu:.0f} a second of processor time)"
        )


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    print(f"Python {platform.python_version()}, pyarrow {pa.__version__}, orjson {orjson.__version__}, "
          f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        large_files(Path(name), megabytes << 20)
        reading_stage(Path(name), number)


if __name__ == "__main__":
    main()
