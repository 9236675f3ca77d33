"""Cost of a sample and of a seek over the size of the corpus, from 10 million to 10 billion tokens.

The index (ids, lengths, places of some 20 million documents for the largest) is made up and packed as a corpus' is, and
memory-mapped; the documents' places lie in one token file of 50 million tokens, whatever the size, so that what is
timed is order and index. Processor time of one core, the best of some rounds: batches of 8 x 2048 from random steps on,
128 in a row after each seek, and the first batch after a seek. Memory is what the process holds beside mapped files.

Use: python bench/loader_scale.py [--largest 10e9]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

T, BATCH, FILE_TOKENS, MEAN = 2048, 8, 50_000_000, 500
IN_A_ROW, ROUNDS = 128, 12


def index(folder: Path, tokens: int) -> None:
    """Lognormal lengths; ids rise by random gaps, as sorted hashes do."""
    from sheaf.corpus.documents import DTYPES, Documents

    rng, n = np.random.default_rng(0), int(tokens / MEAN)
    length = np.clip(rng.lognormal(np.log(MEAN) - 0.5, 1.0, n), 2, 200_000).astype(np.int64)
    source = (np.arange(n) * 3 // n).astype(np.int32)
    ids = np.empty((n, 2), ">u8")
    ids[:, 0] = np.linspace(0, 2.0**63, n).astype(np.uint64) + rng.integers(0, 1000, n).astype(np.uint64)
    ids[:, 1] = rng.integers(0, 2**63, n)
    offset = rng.integers(0, FILE_TOKENS - 200_000, n)
    documents = Documents(ids.view(np.uint8).reshape(n, 16), source, np.zeros(n, np.int32), offset, length)
    for name in DTYPES:
        np.save(folder / f"{name}.npy", getattr(documents, name))


def measure(folder: Path) -> None:
    """Child process, so that memory is its own."""
    from sheaf.corpus.documents import Documents
    from sheaf.order.loader import Loader
    from sheaf.order.order import Order

    order = Order.build(
        Documents.open(folder), ["a", "b", "c"], "scale", sequence_length=T, batch=BATCH, seed=0, mixture={},
        held_out=0.01, cache=folder / "packs",
    )  # fmt: skip
    loader = Loader(order, [np.memmap(folder.parent / "tokens.bin", np.uint16, "r")], prefetch=0)
    epoch = int(order.pack.source_samples.sum()) // BATCH
    rng = np.random.default_rng(1)
    seek, row = [], []
    for _ in range(ROUNDS + 2):
        loader.seek(int(rng.integers(0, 3 * epoch)))
        begin = time.process_time()
        batches = iter(loader)
        next(batches)
        seek.append(time.process_time() - begin)
        begin = time.process_time()
        for _ in range(IN_A_ROW):
            next(batches)
        row.append((time.process_time() - begin) / IN_A_ROW / BATCH)
    status = Path("/proc/self/status").read_text()
    memory = int(status.split("RssAnon:")[1].split()[0]) / 1024
    tokens = order.pack.source_tokens.sum()
    best, median = min(row[2:]), sorted(row[2:])[ROUNDS // 2]
    print(
        f"{tokens:18,} {len(order.documents):12,} {1e6 * best:10.1f} {1e6 * median:10.1f}"
        f"{1e3 * min(seek[2:]):12.2f} {memory:14.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=float, default=10e9)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.child)
        return
    print(f"load {os.getloadavg()[0]:.1f}")
    print("            tokens    documents  µs/sample (best, median)   seek, ms   memory, MB", flush=True)
    with tempfile.TemporaryDirectory() as name:
        rng = np.random.default_rng(0)
        rng.integers(1, 50_000, FILE_TOKENS, dtype=np.uint16).tofile(Path(name) / "tokens.bin")
        for tokens in (10e6, 100e6, 1e9, 10e9):
            if tokens > options.largest:
                break
            folder = Path(name) / f"{tokens:.0f}"
            folder.mkdir()
            index(folder, int(tokens))
            for last in (False, True):  # the first one packs
                out = None if last else subprocess.DEVNULL
                subprocess.run([sys.executable, __file__, "--child", str(folder)], check=True, stdout=out)


if __name__ == "__main__":
    main()
