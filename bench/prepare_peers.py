"""Preparing against datatrove, on the same JSON lines, cores and tokenizer in one run: score, near duplicates, tokens.

Text: this Python's standard library, installed packages and the system's documentation, one record a file, with exact
and word-edited copies planted. Every stage runs over all the text: filters score and drop nothing. Ours reads, scores,
drops near duplicates after verifying each, and encodes; datatrove runs its Gopher filters, its MinHash (14 bands of 8,
which it does not verify) and its tokenizer stage, each reading JSON lines as its users do. Both get two workers. The
tokenizer is trained by ours first, in a run of its own that nobody times. The bar is 12 times datatrove's throughput.
Both clocks are told: the one on the wall, and the processor's, of all processes, which a busy machine blurs less.

datatrove lives in an environment of its own, made in a temporary folder (pip needs the package index).
Use: python bench/prepare_peers.py [--megabytes 40] [--python PYTHON-WITH-DATATROVE] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import orjson

from prepare_scale import Memory, Stages, processor_seconds
from sheaf import recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare

PACKAGES = ("datatrove==0.10.1", "spacy", "xxhash<4", "orjson", "tokenizers", "nltk", "regex", "fasteners")
SHARDS = 8
SEED = 1
RECIPE = """
name: peers
sources: [{name: lines, uri: ./lines, text: text}]
prepare:
  length: {min_characters: 0}
  filters: ["score.top_2gram <= 1 and score.duplicate_10gram <= 1 and score.mean_word_length >= 0"]
  dedup: {near: 0.8, max_loss: 1}
  tokenizer: %s
workspace: %s
"""
THEIRS = """
import json, logging, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig

def writer(folder):
    return JsonlWriter(folder, output_filename="${rank}.jsonl", compression=None)

def main():
    source, tokenizer, work, shards, workers = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
    stages = {
        "filter": ([JsonlReader(source), GopherRepetitionFilter(), GopherQualityFilter(), writer(work + "/f")], shards),
        "sign": ([JsonlReader(source), MinhashDedupSignature(work + "/s", config=config)], shards),
        "buckets": ([MinhashDedupBuckets(work + "/s", work + "/b", config=config)], 14),
        "cluster": ([MinhashDedupCluster(work + "/b", work + "/r", config=config)], 1),
        "apply": ([JsonlReader(source), MinhashDedupFilter(work + "/r"), writer(work + "/d")], shards),
        "tokenise": ([JsonlReader(work + "/d"), DocumentTokenizer(
            work + "/t", tokenizer, eos_token="<|endoftext|>", shuffle_documents=False)], shards),
    }
    seconds = {}
    for name, (pipeline, tasks) in stages.items():
        started = time.perf_counter()
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=min(workers, tasks),
                              start_method="fork", # waited for, so that their processor time is known
                              logging_dir=work + "/log_" + name, skip_completed=False).run()
        seconds[name] = time.perf_counter() - started
    print("SECONDS " + json.dumps(seconds), flush=True)

if __name__ == "__main__":
    main()
"""


def environment(folder: Path) -> str:
    venv.create(folder / "peer", with_pip=True)
    python = str(folder / "peer/bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def files() -> Iterator[str]:
    roots = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share/doc", "/usr/share/perl"]
    patterns = ("*.py", "*.txt", "*.md", "*.rst", "METADATA", "copyright", "README*", "*.pod")
    found = {p for root in roots for pattern in patterns for p in Path(root).rglob(pattern) if p.is_file()}
    paths = sorted(found)
    random.Random(SEED).shuffle(paths)
    for path in paths:
        text = path.read_bytes()[:1_000_000].decode("utf-8", "ignore")
        if len(text) >= 200:
            yield text


def write_lines(folder: Path, megabytes: float) -> tuple[float, int]:
    """Megabytes of text written, with one record in ten a copy of another: half of them exact, and how many those are
    (with the few files that were equal already)."""
    dice, size, records = random.Random(SEED), 0, list[str]()
    for text in files():
        records.append(text)
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    originals = dice.sample(records, len(records) // 10)
    copies = [text if n % 2 else _edited(text, dice) for n, text in enumerate(originals)]
    records += copies
    dice.shuffle(records)
    folder.mkdir()
    for shard in range(SHARDS):
        lines = (orjson.dumps({"id": str(n), "text": records[n]}) for n in range(shard, len(records), SHARDS))
        (folder / f"{shard:02d}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return sum(len(text.encode()) for text in records) / 1e6, len(records) - len(set(records))


def _edited(text: str, dice: random.Random) -> str:
    """One word in a hundred replaced."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 100)):
        words[dice.randrange(len(words))] = "otherwise"
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--python", help="of an environment with datatrove, instead of making one")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        python = options.python or environment(root)
        size, exact = write_lines(root / "lines", options.megabytes)
        print(f"Python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
              f"load {os.getloadavg()[0]:.1f}, {options.workers} workers, {size:.1f} MB of text")  # fmt: skip
        trained = recipe_file.loads(RECIPE % ("{train: bpe, vocab_size: 16384, sample_mb: 8}", "./first"), root)
        prepare(trained, workers=options.workers)
        tokenizer = next((root / "first/tokenizers").glob("*/tokenizer.json"))
        stages, memory = Stages(), Memory()
        memory.start()
        recipe = recipe_file.loads(RECIPE % (f"{{from: {tokenizer}}}", "./second"), root)
        started, used = time.perf_counter(), processor_seconds()
        done = prepare(recipe, workers=options.workers, console=stages)
        ours, our_processor = time.perf_counter() - started, processor_seconds() - used
        memory.stop()
        shown = ", ".join(f"{title} {taken:.2f}" for title, taken in stages.seconds.items())
        reading = stages.seconds["list"] + stages.seconds["read"]
        print(f"ours: {ours:.2f} s, {size / ours:.2f} MB/s with reading; {size / (ours - reading):.2f} MB/s without; "
              f"peak {memory.peak / 1e6:.0f} MB; {shown}; records {done['records']}")  # fmt: skip
        # Those whose record goes as a near duplicate are counted there. More are found: equal once normalised.
        distinct = CorpusVersion.open(root / "second").decisions().num_rows
        print(f"exact copies: {exact} written, {done['records']['read'] - distinct} found")
        (root / "theirs.py").write_text(THEIRS)
        command = [python, str(root / "theirs.py"), str(root / "lines"), str(tokenizer), str(root / "work")]
        used = processor_seconds()
        out = subprocess.run([*command, str(SHARDS), str(options.workers)], capture_output=True, check=False)
        their_processor = processor_seconds() - used
        if out.returncode:
            sys.exit(out.stderr.decode()[-4000:])
        line = next(x for x in out.stdout.splitlines() if x.startswith(b"SECONDS "))
        seconds = orjson.loads(line.removeprefix(b"SECONDS "))
        theirs = sum(seconds.values())
        shown = ", ".join(f"{title} {taken:.1f}" for title, taken in seconds.items())
        print(f"datatrove: {theirs:.1f} s, {size / theirs:.2f} MB/s; {shown}")
        print(f"ours/datatrove: {theirs / ours:.1f} with reading, {theirs / (ours - reading):.1f} without (bar 12)")
        print(f"processor: ours {our_processor:.1f} s with reading, datatrove {their_processor:.1f} s, "
              f"{their_processor / our_processor:.1f} times")  # fmt: skip


if __name__ == "__main__":
    main()
