"""How fast one sandbox takes in text: many small files, one large plain text, one large JSON Lines file.

Prints files a second and MB a second, with versions and machine. Writes its inputs to a temporary folder. Run:
    python bench/intake.py [MB of the large files, default 64] [number of small files, default 4000]
"""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
import time
from pathlib import Path

import orjson
import psutil
import pyarrow as pa

from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits

PARAGRAPH = (
    "What a reader here is given is the text of an ordinary page: words of several lengths, commas, full stops, a "
    "number such as 1871 now and then, and a line end after some eighty characters.\n"
)


def small_files(folder: Path, number: int) -> list[Path]:
    paths: list[Path] = []
    for i in range(number):
        path = folder / f"{i:05d}.txt"
        path.write_text(f"Note {i}\n" + PARAGRAPH * (1 + i % 12))
        paths.append(path)
    return paths


def plain(folder: Path, size: int, line: str) -> Path:
    path = folder / "large.txt"
    data = line.encode()
    path.write_bytes(data * (size // len(data)))
    return path


def json_lines(folder: Path, size: int) -> Path:
    path = folder / "large.jsonl"
    with path.open("wb") as file:
        row = 0
        while file.tell() < size:
            file.write(orjson.dumps({"id": row, "text": PARAGRAPH * (1 + row % 8), "lang": "en"}) + b"\n")
            row += 1
    return path


def cpu_seconds() -> float:
    """CPU time of this process and its sandbox: what a busy machine does not blur."""
    this = psutil.Process()
    return sum(p.cpu_times().user + p.cpu_times().system for p in (this, *this.children()))


def measure(label: str, sandbox: Sandbox, paths: list[Path]) -> None:
    size = sum(path.stat().st_size for path in paths)
    start, cpu = time.perf_counter(), cpu_seconds()
    records = 0
    for first in range(0, len(paths), 500):
        with contextlib.ExitStack() as stack:
            files = [(stack.enter_context(path.open("rb")), path) for path in paths[first : first + 500]]
            items = [ItemInput(file, path.name, path.stat().st_size) for file, path in files]
            records += len(sandbox.parse(items, ParseOptions()).records)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    print(
        f"{label:<14} {len(paths):>6} files  {size / 1e6:>7.1f} MB  {records:>7} records  {seconds:>6.2f} s  "
        f"{len(paths) / seconds:>8.0f} files/s  {size / 1e6 / seconds:>6.1f} MB/s  "
        f"({size / 1e6 / cpu:>6.1f} MB, {len(paths) / cpu:.0f} files a CPU second)"
    )


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    number = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
    print(f"Python {platform.python_version()}, pyarrow {pa.__version__}, orjson {orjson.__version__}, "
          f"{platform.machine()}, {platform.processor() or 'unknown CPU'}")  # fmt: skip
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, Sandbox(Limits(record_mb=max(64, 2 * megabytes))) as sandbox:
        sandbox.level()
        print(f"start of the child: {time.perf_counter() - start:.2f} s")
        folder = Path(name)
        measure("small files", sandbox, small_files(folder, number))
        measure("plain text", sandbox, [plain(folder, megabytes << 20, PARAGRAPH)])
        french = PARAGRAPH.replace("e", "é", 4).replace("ordinary", "ordinaire à côté")
        measure("accented text", sandbox, [plain(folder, megabytes << 20, french)])
        measure("JSON Lines", sandbox, [json_lines(folder, megabytes << 20)])


if __name__ == "__main__":
    main()
