"""How fast personal data and parts of evaluation files are searched for, a core.

Prints MB/s of processor time: prose (of Latin and of Chinese characters), tables of numbers, log lines, text full of
addresses; each beside the patterns alone, tried over the whole text, which find the same. Then decontamination against
20,000 questions.

    python bench/privacy.py [MB of text of each kind, default 4]
"""

from __future__ import annotations

import platform
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.corpus.workspace import Workspace
from sheaf.prepare import decontaminate
from sheaf.prepare.evaluation import Exams
from sheaf.privacy import find
from sheaf.privacy.plain import spans_everywhere

RNG = random.Random(4)
WORDS = ["".join(RNG.choices("etaoinshrdlucmfwypvbgkjqxz", k=RNG.randint(2, 11))) for _ in range(20_000)]


def prose() -> str:
    return " ".join(RNG.choice(WORDS) + RNG.choices(["", ",", ".", " in 1987"], [88, 5, 6, 1])[0] for _ in range(500))


def chinese() -> str:
    return "".join(
        chr(RNG.randint(0x4E00, 0x9FA5)) if RNG.random() < 0.93 else RNG.choice("，。、24年") for _ in range(1000)
    )


def numbers() -> str:
    return "\n".join(",".join(f"{RNG.uniform(-1e6, 1e6):.6f}" for _ in range(8)) for _ in range(30))


def logs() -> str:
    return "\n".join(
        f"2026-11-{RNG.randint(1, 30):02d} 12:10:45 INFO 10.0.{RNG.randint(0, 255)}.7 took 0.0312 s" for _ in range(50)
    )


def addresses() -> str:
    return " ".join(f"user{RNG.randint(0, 10**6)}@mail.example.org and some words between" for _ in range(60))


def texts_of(kind: object, size: int) -> pa.LargeStringArray:
    assert callable(kind)
    made: list[str] = []
    while sum(map(len, made[-1:])) * len(made) < size:
        made.append(kind())
    return pa.array(made, pa.large_string())


def speed(texts: pa.LargeStringArray, work: object) -> float:
    assert callable(work)
    size, best = sum(len(t.as_py().encode()) for t in texts), np.inf
    for _ in range(3):
        start = time.process_time()
        work(texts)
        best = min(best, time.process_time() - start)
    return size / best / 1e6


def exams(folder: Path) -> Exams:
    (folder / "evals").mkdir()
    rows = [{"question": " ".join(RNG.choices(WORDS, k=RNG.randint(6, 60)))} for _ in range(20_000)]
    (folder / "evals" / "q.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    recipe = recipe_file.loads(
        "name: t\nsources: [{name: a, uri: .}]\nprepare: {decontaminate: [evals/q.jsonl]}\n", folder
    )
    workspace = Workspace.at(recipe.workspace)
    workspace.create()
    digest = decontaminate.build(workspace, recipe, Silent())
    assert digest is not None
    return Exams.open(workspace, digest)


def main() -> None:
    size = int(float(sys.argv[1]) * 1e6) if len(sys.argv) > 1 else 4_000_000
    print(f"Python {platform.python_version()}, {platform.machine()}; MB/s of UTF-8, one core, best of three")
    print(f"{'':12}{'find':>8}{'patterns alone':>16}{'ratio':>7}")
    find(pa.array(["compiled"], pa.large_string()))
    for kind in (prose, chinese, numbers, logs, addresses):
        texts = texts_of(kind, size)
        some = texts.slice(0, max(1, len(texts) // 10))
        quick, plain = (
            speed(texts, find),
            speed(some, lambda part: [spans_everywhere(t.as_py().encode()) for t in part]),
        )
        print(f"{kind.__name__:12}{quick:8.0f}{plain:16.1f}{quick / plain:6.0f}×")
    with tempfile.TemporaryDirectory() as folder:
        table = exams(Path(folder))
        texts = pa.array(
            texts_of(prose, size).to_pylist() * 4, pa.large_string()
        )  # as large as a shard: tables are laid out
        decontaminate.search(texts.slice(0, 1), table)
        found = speed(texts, lambda part: decontaminate.search(part, table))
        print(f"decontaminate, {len(table.keys):,} pieces of {len(table.widths)} widths: {found:.0f}")


if __name__ == "__main__":
    main()
