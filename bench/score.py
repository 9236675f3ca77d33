"""Speed of the scoring stage, on one core: all signals with the language, from records.parquet to scores.parquet.

Texts: this Python's standard library and packages (source code and documentation), and what translators wrote in other
scripts, from this machine's message catalogues and manual pages; or the JSON lines (key "text") that are named. Parts
are timed alone over the same texts. The last two lines are the worst that a text can do to the n-gram part: one long
record of repeats, and one without any. Processor time, the best of three turns; the bar is 20 MB/s a core.

Run:  python bench/score.py [FILE.jsonl …]
"""

from __future__ import annotations

import os
import platform
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from language import texts_of
from sheaf.corpus import shards
from sheaf.corpus.schema import RECORDS
from sheaf.prepare import language, score
from sheaf.prepare import measure as m
from sheaf.prepare import repetition as r

LIMIT = 24_000_000  # bytes of a kind of text
TURNS = 3
SCRIPTS = {"Latin": "de fr es pl vi", "Cyrillic": "ru uk bg", "Arabic": "ar fa", "Devanagari": "hi mr", "Han": "zh ja"}
SCRIPTS |= {"Hangul": "ko", "Thai": "th"}


def main() -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numba {numba.__version__},"
    )
    print(f"numpy {np.__version__}, pyarrow {pa.__version__}, py3langid {version('py3langid')}; MB/s a core\n")
    heads = ("stage", "count", "repeats", "language")
    print(f"{'text':12} {'records':>8} {'MB':>6} {'bytes each':>11}" + "".join(f" {head:>9}" for head in heads))
    score.signals(pa.array(["compile, and load the model"], pa.large_string()))
    for name, texts in kinds().items():
        if texts:
            line(name, pa.array(texts, pa.large_string()))


def kinds() -> dict[str, list[str]]:
    if len(sys.argv) > 1:
        return {Path(a).name[:12]: [orjson.loads(row)["text"] for row in open(a, "rb")] for a in sys.argv[1:]}
    pages = texts_of([Path("/usr/share")])["a page"]
    found = {"code, docs": files()}
    for length in (1000, 200):
        cut = [text[at : at + length] for text in found["code, docs"][::8] for at in range(0, len(text), length)]
        found[f"… cut {length:,}"] = cut
    for script, codes in SCRIPTS.items():
        found[script] = limited([text for code in codes.split() for text in pages.get(code, [])])
    dice = random.Random(1)
    found["repeats"] = [" ".join(dice.choices(["spam", "ham"], k=4) * 500_000)]
    found["no repeats"] = [" ".join(f"{dice.getrandbits(40):x}" for _ in range(1_000_000))]
    return found


def files() -> list[str]:
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    paths = sorted({p for root in roots for end in ("py", "rst", "md", "txt") for p in root.rglob(f"*.{end}")})
    return limited([p.read_text(encoding="utf-8", errors="replace") for p in paths[:: max(1, len(paths) // 4000)]])


def limited(texts: list[str]) -> list[str]:
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: int(np.searchsorted(sizes, LIMIT)) + 1]


def line(name: str, texts: pa.LargeStringArray) -> None:
    data, offsets = score.bytes_of(texts)
    size = int(offsets[-1] - offsets[0])
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.parquet"
        pq.write_table(as_records(texts), records, compression="zstd", row_group_size=shards.ROW_GROUP)
        stage = speed(size, lambda: score.score_file(records, Path(folder) / "scores.parquet"))
    kept = Words(data, offsets)
    parts = (
        speed(size, kept.measure),
        speed(size, kept.repeats),
        speed(size, lambda: language.classify(data, offsets)),
    )
    print(
        f"{name:12} {len(texts):8,} {size / 1e6:6.1f} {size // len(texts):11,}"
        + "".join(f" {rate:9.1f}" for rate in (stage, *parts)),
        flush=True,
    )


class Words:
    """What `measure` leaves of texts, and the two kernels over them."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self.text = (data, offsets, score.classes(), *m.phrase_automaton())
        rows, room = len(offsets) - 1, int(offsets[-1] - offsets[0]) // 2 + len(offsets)
        self.words = (
            np.empty(room, np.uint64),
            np.empty(room, np.int32),
            np.empty(room, np.int64),
            np.empty(room, bool),
        )
        self.ends = np.zeros((rows, 2), np.int64)

    def measure(self) -> None:
        m.measure(*self.text, np.zeros((len(self.ends), m.COLUMNS), np.int64), *self.words, self.ends)

    def repeats(self) -> None:
        r.repetition(*self.words, self.ends, np.zeros((len(self.ends), r.COLUMNS), np.int64))


def as_records(texts: pa.LargeStringArray) -> pa.Table:
    ids = pa.array([n.to_bytes(16, "big") for n in range(len(texts))], RECORDS.field("id").type)
    return pa.table({"id": ids, "kind": ["text"] * len(texts), "text": texts})


def speed(size: int, work: Callable[[], object]) -> float:
    """MB a second of processor time, the best of some turns."""
    best = float("inf")
    for _ in range(TURNS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return size / best / 1e6


if __name__ == "__main__":
    main()
