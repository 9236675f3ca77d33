"""A changed threshold beside the first run: seconds, and their ratio. Bar: under 5%.

Records are JSON lines of made-up words, 40 to 160 each, one in fifty nearly a copy of the one before it; near
duplicates and personal data are looked for. The first run reads, scores and encodes; the others change what a filter
asks for, and only select anew. Both in one process, on the same cores.

Use: python bench/reselect.py [--records 40000] [--workers 2]
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
import time
from pathlib import Path

import orjson

from sheaf import recipe_file
from sheaf.prepare.pipeline import prepare

RECIPE = """
name: reselect
sources: [{name: lines, uri: ./lines, text: text}]
prepare:
  filters: ["score.words >= %d"]
  dedup: {near: 0.8, max_loss: 1}
  privacy: {email: mask, phone: mask, secret: mask}
  tokenizer: {train: bpe, vocab_size: 8192, sample_mb: 16}
"""
FILES = 8


def write_lines(folder: Path, records: int) -> int:
    """Bytes written."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    folder.mkdir()
    text, size = "", 0
    for number in range(FILES):
        lines: list[bytes] = []
        for _ in range(records // FILES):
            near = text and rng.random() < 0.02
            text = f"{text} more" if near else " ".join(rng.choices(words, k=rng.randint(40, 160)))
            lines.append(orjson.dumps({"text": text}))
        size += (folder / f"{number}.jsonl").write_bytes(b"\n".join(lines))
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=2)
    said = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {said.workers} workers, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        size = write_lines(base / "lines", said.records)
        print(f"{said.records} records, {size / 1e6:.0f} MB")
        first = 0.0
        for least in (0, 50, 60, 70):
            started = time.perf_counter()
            kept = prepare(recipe_file.loads(RECIPE % least, base), workers=said.workers)["records"]["kept"]
            seconds = time.perf_counter() - started
            first = first or seconds
            print(f"at least {least:2} words: {seconds:6.2f} s, {seconds / first:6.1%} of the first run, {kept} kept")


if __name__ == "__main__":
    main()
