"""What a survey costs, and how near it comes: 100,000 files surveyed, 5,000 of them surveyed and then prepared.

Prints wall time, CPU time and the share of bytes read for the whole tree; then, for the subset, each estimate beside
what `prepare` made of it, and whether it lay within its stated error. The tree is text, Markdown, HTML, CSV and JSON
Lines in several scripts, with copies, made from a seed in a temporary folder. Run:
    python bench/scan.py [files, default 100000] [files of the subset, default 5000]
"""

from __future__ import annotations

import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil

from sheaf.api import folder_recipe, prepare, scan
from sheaf.corpus.version import CorpusVersion

Json = dict[str, Any]
SENTENCES = (
    "The harbour was quiet that morning, and nobody had yet opened the shutters of the chandler's shop",
    "A table of tides hangs beside the door; its last page is from 1871",
    "When the water falls below the second mark, the ferry waits for the next one",
    "Der Hafen war an diesem Morgen still, und niemand hatte die Läden schon geöffnet",
    "Le port était calme ce matin-là, et personne n'avait encore ouvert les volets",
    "Гавань в то утро была тиха, и никто ещё не открыл ставни",
    "那天早上港口很安静，还没有人打开商店的百叶窗",
)
WORDS = " ".join(SENTENCES[:3]).replace(",", "").replace(";", "").split()
SUBFOLDER = 500  # files


def prose(rng: random.Random, size: int) -> str:
    parts: list[str] = []
    have = 0
    while have < size:
        part = rng.choice(SENTENCES) if rng.random() < 0.3 else " ".join(rng.choices(WORDS, k=12))
        parts.append(f"{part}, {rng.randrange(10**6)}.")
        have += len(part)
    return "\n".join(parts)


def text(rng: random.Random) -> bytes:
    return prose(rng, rng.randrange(500, 4000)).encode()


def page(rng: random.Random) -> bytes:
    paragraphs = "".join(f"<p>{prose(rng, 600)}</p>" for _ in range(rng.randrange(1, 6)))
    return (
        f"<!DOCTYPE html><html><head><title>Page</title></head><body><h1>Page</h1>{paragraphs}</body></html>".encode()
    )


def rows(rng: random.Random) -> bytes:
    return b"".join(
        orjson.dumps({"id": n, "text": prose(rng, 200), "score": rng.random()}) + b"\n"
        for n in range(rng.randrange(5, 40))
    )


def table(rng: random.Random) -> bytes:
    lines = [f'{n},"{prose(rng, 150)}",{rng.random():.4f}' for n in range(rng.randrange(5, 40))]
    return "\n".join(["id,text,score", *lines, ""]).encode()


KINDS: tuple[tuple[float, str, Callable[[random.Random], bytes]], ...] = (
    (0.55, ".txt", text),
    (0.75, ".md", text),
    (0.9, ".html", page),
    (0.96, ".jsonl", rows),
    (1.0, ".csv", table),
)


def make(folder: Path, number: int) -> None:
    """One file in twenty repeats an earlier one."""
    folder.mkdir()
    for n in range(number):
        rng = random.Random(n if n % 20 else n // 2 + 1)
        kind = rng.random()
        _, suffix, content = next(k for k in KINDS if kind < k[0])
        place = folder / f"{n // SUBFOLDER:04d}"
        place.mkdir(exist_ok=True)
        (place / f"{n:06d}{suffix}").write_bytes(content(rng))


def cpu_seconds() -> float:
    """Of this process and of children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def made(corpus: CorpusVersion, seconds: float) -> dict[str, float]:
    ledger = corpus.ledger()
    digests = ledger["digest"].to_pylist()
    held = sum(p.stat().st_size for p in corpus.workspace.root.rglob("*") if p.is_file())
    return {
        "records": float(sum(ledger["records"].to_pylist())),
        "repeated items, %": 100 * (1 - len(set(digests)) / len(digests)),
        "tokens": float(corpus.manifest["tokens"]),
        "disk, MB": held / 1e6,
        "seconds": seconds,
    }


def estimated(data: Json) -> dict[str, tuple[float, float]]:
    """(value, error) of each."""
    (source,) = data["sources"].values()
    forecast = data["forecast"]

    def pair(estimate: Json, scale: float = 1.0, value: str = "value") -> tuple[float, float]:
        return estimate[value] * scale, estimate["error"] * scale

    return {
        "records": pair(source["records"]),
        "repeated items, %": pair(source["copies"], 100, "share"),
        "tokens": pair(forecast["tokens"]),
        "disk, MB": pair(forecast["disk_bytes"], 1e-6),
        "seconds": pair(forecast["seconds"]),
    }


def survey_all(folder: Path) -> None:
    start, cpu = time.perf_counter(), cpu_seconds()
    sample = scan(folder_recipe(folder))["sample"]
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    print(
        f"{sample['of_items']:,} files, {sample['of_bytes'] / 1e6:.0f} MB: {seconds:.1f} s ({cpu:.1f} CPU s), "
        f"{sample['items']:,} files looked at, {sample['bytes'] / sample['of_bytes']:.1%} of the bytes read, "
        f"{psutil.Process().memory_info().rss >> 20} MB held"
    )


def compare(folder: Path, workspace: Path) -> None:
    guess = estimated(scan(folder_recipe(folder)))
    start = time.perf_counter()
    corpus = prepare(folder_recipe(folder).model_copy(update={"workspace": str(workspace)}))
    truth = made(corpus, time.perf_counter() - start)
    for what, (value, error) in guess.items():
        off = abs(value - truth[what])
        verdict = "within" if off <= error else f"off by {off / error:.1f} errors" if error else "off"
        print(f"  {what:<18} about {value:>14,.1f} ± {error:>12,.1f}   made {truth[what]:>14,.1f}   {verdict}")


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    subset = int(sys.argv[2]) if len(sys.argv) > 2 else 5_000
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"Python {platform.python_version()}, {machine}")
    with tempfile.TemporaryDirectory() as name:
        whole, part = Path(name) / "whole", Path(name) / "part"
        make(whole, number)
        survey_all(whole)
        make(part, subset)
        print(f"{subset:,} files, surveyed and prepared:")
        compare(part, Path(name) / "workspace")


if __name__ == "__main__":
    main()
