"""Packing: share of the positions that hold a token, documents cut that would have fitted, and speed, by kind.

Lengths: three lognormal laws (medians of 245, 665 and 992 tokens: web text, articles, long documents), chats (median
180, few above 1,000), and the source files of Python's standard library (bytes / 3.5). Beside Sheaf's three kinds
stand what people do without one: rows padded to the full length with long documents truncated, and rows in batches of
8 padded to their longest. "lost": tokens of documents that these drop.

Use: python bench/packing.py [--documents 100000]
"""

from __future__ import annotations

import argparse
import os
import platform
import sysconfig
import time
from pathlib import Path
from typing import get_args

import numpy as np

from sheaf.corpus.documents import Documents
from sheaf.order.pack import Pack, pack_documents
from sheaf.recipe import Packing

LOGNORMAL = {"web text": (5.5, 1.2), "articles": (6.5, 1.0), "long documents": (6.9, 1.4), "chats": (5.2, 0.8)}


def lengths(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.lognormal(mean, sigma, count) for name, (mean, sigma) in LOGNORMAL.items()}
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    sizes = np.array([f.stat().st_size / 3.5 for f in files if "site-packages" not in f.parts])
    return {name: np.maximum(n, 2).astype(np.int64) for name, n in {**made, "standard library": sizes}.items()}


def packed(length: np.ndarray, capacity: int, kind: Packing) -> tuple[Pack, float]:
    n = len(length)
    nowhere, ids = np.zeros(n, np.int32), np.random.default_rng(1).integers(0, 256, (n, 16), dtype=np.uint8)
    documents = Documents(ids, nowhere, nowhere, length * 0, length)
    begin = time.process_time()
    pack = pack_documents(documents, np.ones(n, bool), 1, capacity, kind)
    return pack, (time.process_time() - begin) / n


def row(name: str, used: float, cut: float, lost: float, speed: str) -> None:
    print(f"  {name:18} {used:8.2%} used   {cut:6.1%} cut   {lost:6.1%} lost   {speed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    count = parser.parse_args().documents
    print(f"load {os.getloadavg()[0]:.1f}; python {platform.python_version()}, numpy {np.__version__}")
    for kind in get_args(Packing):
        packed(np.full(10, 9), 16, kind)  # compiled before the clock
    for capacity in (2048, 8192):
        for name, length in lengths(count).items():
            inputs = length - 1
            print(f"{name}, {len(length):,} documents, sequence length {capacity}")
            for kind in get_args(Packing):
                pack, seconds = packed(length, capacity, kind)
                rows = np.diff(pack.sample_first_run)
                positions = (rows * pack.sample_longest).sum() if kind == "padded" else len(rows) * capacity
                runs = np.bincount(pack.run_document, minlength=len(length))
                cut = float((runs[inputs <= capacity] > 1).mean())
                row(kind, pack.sample_tokens.sum() / positions, cut, 0.0, f"{seconds * 1e6:.2f} us a document")
            kept = np.minimum(inputs, capacity)
            lost = 1 - kept.sum() / inputs.sum()
            eights = np.sort(kept[: len(kept) // 8 * 8].reshape(-1, 8), axis=1)
            row("full rows", kept.sum() / (len(kept) * capacity), 0.0, lost, "")
            row("batches of 8", eights.sum() / (8 * eights[:, -1]).sum(), 0.0, lost, "")


if __name__ == "__main__":
    main()
