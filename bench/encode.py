"""Encoding: Sheaf's encoder against the tokenizers library, same text, same cores, ids compared.

Text: this Python's standard library and installed packages' metadata (read first; not part of the time). Both encode
the same documents on `--cores` cores: the library with its own threads (encode_batch_fast, ids read into numpy), ours
as `prepare` does it, one process a core, each with its share of the documents. The bar is 3 times the library.

Use: python bench/encode.py [--megabytes 30] [--cores 1] [--cores 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sysconfig
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

VOCABULARY = 16384
ROWS = 1024  # as the encoding stage takes them


def texts(megabytes: float) -> list[str]:
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    found: list[str] = []
    size = 0
    for path in sorted(p for r in roots for pattern in ("*.py", "*.txt", "METADATA") for p in r.rglob(pattern)):
        text = path.read_text("utf-8", "replace")
        found.append(text)
        size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return found


@lru_cache
def _encoder(path: str) -> Any:
    from sheaf.prepare.encoder import Encoder

    return Encoder(Path(path))


@lru_cache
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    return tokenizer


def ours(path: str, documents: list[str]) -> list[np.ndarray]:
    encoder = _encoder(path)
    found: list[np.ndarray] = []
    for first in range(0, len(documents), ROWS):
        ids, bounds = encoder.encode_many(pa.array(documents[first : first + ROWS], pa.large_string()))
        found += [ids[a : b - 1] for a, b in pairwise(bounds)]
    return found


def library(path: str, documents: list[str]) -> list[np.ndarray]:
    batch = _tokenizer(path).encode_batch_fast(documents, add_special_tokens=False)
    return [np.array(e.ids, np.uint32) for e in batch]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--cores", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    documents = texts(options.megabytes)
    size = sum(len(d.encode()) for d in documents) / 1e6
    import tiktoken
    import tokenizers

    print(f"tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}, Python {platform.python_version()}")
    print(f"{len(documents)} documents, {size:.1f} MB, vocabulary {VOCABULARY}")
    with tempfile.TemporaryDirectory() as folder:
        path = train(Path(folder), documents)
        for cores in options.cores or [1, 2]:
            measure(path, documents, size, cores, options.rounds)


def train(folder: Path, documents: list[str]) -> str:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from sheaf.prepare.tokenizer import END_OF_TEXT, PATTERN

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents[::3], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def measure(path: str, documents: list[str], megabytes: float, cores: int, rounds: int) -> None:
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:cores])
    os.environ["RAYON_NUM_THREADS"] = str(cores)
    parts = [documents[i::cores] for i in range(cores)]
    speed: dict[str, list[float]] = {"tokenizers": [], "sheaf": []}
    # fresh processes: the library fixes its number of threads at first use
    with ProcessPoolExecutor(1) as one, ProcessPoolExecutor(cores) as many:
        one.submit(library, path, documents[:10]).result()
        list(many.map(ours, [path] * cores, [p[:10] for p in parts]))
        for _ in range(rounds):
            reference = one.submit(timed, "library", path, documents).result()
            speed["tokenizers"].append(megabytes / reference[0])
            results = list(many.map(timed, ["ours"] * cores, [path] * cores, parts))
            speed["sheaf"].append(megabytes / max(seconds for seconds, _ in results))
    for core, (_, ids) in enumerate(results):
        for mine, theirs in zip(ids, reference[1][core::cores], strict=True):
            assert np.array_equal(mine, theirs), "ids differ"
    ratio = statistics.median(a / b for a, b in zip(speed["sheaf"], speed["tokenizers"], strict=True))
    line = "  ".join(f"{name} {statistics.median(v):.2f} MB/s" for name, v in speed.items())
    print(f"{cores} core(s): {line}  ratio {ratio:.2f}  (ids identical)")
    os.sched_setaffinity(0, available)


def timed(which: str, path: str, documents: list[str]) -> tuple[float, list[np.ndarray]]:
    """Seconds of encoding alone, without sending texts and ids between processes."""
    function = ours if which == "ours" else library
    function(path, documents[:5])
    start = time.perf_counter()
    ids = function(path, documents)
    return time.perf_counter() - start, ids


if __name__ == "__main__":
    main()
