"""Loader: tokens a second on one core, time to the first batch, packing efficiency; beside a copy and random crops.

Makes 100 million synthetic tokens (three sources with lognormal document lengths, uint16, memory-mapped, in the page
cache), then times batches of 8 x 2048 from: a plain copy of the memory-mapped file in order (the ceiling),
nanoGPT-style random crops (no boundaries, no resume), and Sheaf (packed, shuffled, mixed; input ids, labels,
positions and document numbers), with its thread and without, with its blocks' digests checked (each when it is first
touched) and not, and with half of the tokens not to be predicted. All run in this process on one core, interleaved, the
median of some rounds; beside the clock stands the processor's time, which other work on the machine hardly touches. The
first batch is timed in a fresh process: opening the files and finding the pack, without imports (numba's own are among
them). So is the memory that is not the files': anonymous pages after some thousand batches, less those after imports.

Use: python bench/loader.py [--tokens 100e6] [--seconds 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

T, BATCH, SHARDS = 2048, 8, 4
SOURCES = {"web": (6.2, 1.1, 0.6), "code": (6.8, 1.3, 0.3), "mail": (5.0, 0.9, 0.1)}  # lognormal mean, sigma; share


def make(folder: Path, tokens: int) -> None:
    from sheaf.corpus.blocks import write_table
    from sheaf.corpus.documents import DTYPES, Documents
    from sheaf.files import task_folder

    rng = np.random.default_rng(0)
    lengths = [
        np.clip(rng.lognormal(mean, sigma, int(tokens * share / np.exp(mean + sigma**2 / 2))), 2, 200_000).astype(
            np.int64
        )
        for mean, sigma, share in SOURCES.values()
    ]
    length = np.concatenate(lengths)
    n = len(length)
    source = np.repeat(np.arange(3, dtype=np.int32), [len(x) for x in lengths])
    ids = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    ids = ids[np.lexsort((*ids.T[::-1], source))]
    shard = rng.integers(0, SHARDS, n).astype(np.int32)
    offset = np.zeros(n, np.int64)
    for s in range(SHARDS):
        mine = rng.permutation(np.flatnonzero(shard == s))  # a shard's order is not that of the ids
        offset[mine] = np.cumsum(length[mine]) - length[mine]
        with task_folder(folder / f"shard-{s}") as out:
            rng.integers(1, 50_000, int(length[mine].sum()), dtype=np.uint16).tofile(out / "tokens.bin")
            write_table(out / "tokens.bin")
    documents = Documents(ids, source, shard, offset, length)
    for name in DTYPES:
        np.save(folder / f"{name}.npy", getattr(documents, name))
    rng.integers(1, 50_000, int(length.sum()), dtype=np.uint16).tofile(folder / "flat.bin")


def sheaf_loader(folder: Path, prefetch: int, *, chats: bool = False, checked: bool = True) -> Any:
    """chats: half of the tokens of every file are not to be predicted. checked: the files' blocks are compared with
    their digests when they are first touched, as those of a corpus are."""
    from sheaf.corpus.documents import Documents
    from sheaf.corpus.token_files import open_files
    from sheaf.order.loader import Loader
    from sheaf.order.order import Order

    shards = [folder / f"shard-{s}" for s in range(SHARDS)]
    losses = []
    if chats:
        rng = np.random.default_rng(0)
        sizes = [(shard / "tokens.bin").stat().st_size // 2 for shard in shards]
        losses = [np.repeat(rng.integers(0, 2, n // 64 + 1, dtype=np.uint8), 64)[:n] for n in sizes]
    order = Order.build(
        Documents.open(folder), list(SOURCES), "bench", sequence_length=T, batch=BATCH, seed=0, mixture={},
        held_out=0.01, cache=None if chats else folder / "packs", losses=losses,
    )  # fmt: skip
    if checked:
        return Loader(order, open_files(str(folder), "", shards, "uint16").tokens, prefetch=prefetch)
    files = [np.memmap(shard / "tokens.bin", np.uint16, "r") for shard in shards]
    return Loader(order, files, prefetch=prefetch)


def copy(folder: Path) -> Iterator[Any]:
    flat = np.memmap(folder / "flat.bin", np.uint16, "r")
    while True:
        for i in range(len(flat) // (T * BATCH)):
            yield flat[i * T * BATCH : (i + 1) * T * BATCH].astype(np.int64).reshape(BATCH, T)


def crops(folder: Path) -> Iterator[Any]:
    flat, rng = np.memmap(folder / "flat.bin", np.uint16, "r"), np.random.default_rng(0)
    while True:
        yield np.stack([flat[j : j + T].astype(np.int64) for j in rng.integers(0, len(flat) - T, BATCH)])


def speed(batches: Iterator[Any], seconds: float) -> tuple[float, float]:
    """Positions a second (padding included, below 1%), as for the peers, which have none; by the clock, and by the
    processor's time."""
    for _ in range(50):
        next(batches)
    begin, used, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        next(batches)
        n += 1
    positions = n * T * BATCH
    return positions / (time.perf_counter() - begin), positions / (time.process_time() - used)


def first_batch(folder: Path) -> None:
    """Child process: imports first, then the clock."""
    importlib.import_module("sheaf.order.loader")
    before = anonymous_bytes()
    begin, used = time.perf_counter(), time.process_time()
    with sheaf_loader(folder, 2) as loader:
        running = iter(loader)
        next(running)
        first, first_cpu = time.perf_counter() - begin, time.process_time() - used
        for _ in range(3000):
            next(running)
        memory = anonymous_bytes() - before
        begin = time.perf_counter()
        loader.seek(10_000_000)
        next(iter(loader))
        seek = time.perf_counter() - begin
    print(json.dumps({"first": first, "first_cpu": first_cpu, "seek": seek, "memory": memory}))


def anonymous_bytes() -> int:
    """Of this process, in memory: what is no page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def pack_speed(folder: Path) -> tuple[float, float]:
    from sheaf.corpus.documents import Documents
    from sheaf.order.pack import pack_documents

    documents = Documents.open(folder)
    chosen = np.ones(len(documents), bool)
    pack = pack_documents(documents, chosen, len(SOURCES), T)
    begin = time.perf_counter()
    pack_documents(documents, chosen, len(SOURCES), T)
    rate = len(documents) / (time.perf_counter() - begin)
    return rate, float(pack.sample_tokens.sum() / (len(pack.sample_tokens) * T))


def digest_speed() -> dict[str, float]:
    """GB a second of the processor's time, of 64 KiB blocks."""
    from xxhash import xxh3_64_intdigest

    data = memoryview(np.random.default_rng(0).bytes(1 << 26))
    found: dict[str, float] = {}
    for name, digest in (("XXH3", xxh3_64_intdigest), ("SHA-256", hashlib.sha256), ("BLAKE2b", hashlib.blake2b)):
        used = time.process_time()
        for at in range(0, len(data), 1 << 16):
            digest(data[at : at + (1 << 16)])
        found[name] = len(data) / (time.process_time() - used) / 1e9
    return found


def compare(folder: Path, seconds: float, rounds: int) -> None:
    kinds = {
        "plain copy": copy(folder),
        "random crops": crops(folder),
        "sheaf, no thread": iter(sheaf_loader(folder, 0)),
        "sheaf, thread": iter(sheaf_loader(folder, 2)),
        "sheaf, thread, unchecked": iter(sheaf_loader(folder, 2, checked=False)),
        "sheaf, chats": iter(sheaf_loader(folder, 2, chats=True)),
    }
    for batches in kinds.values():  # until nearly every block has been touched: what comes then is the steady rate
        for _ in range(3000):
            next(batches)
    speeds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, batches in kinds.items():
            speeds[kind].append(speed(batches, seconds))
    median = {kind: tuple(map(statistics.median, zip(*values, strict=True))) for kind, values in speeds.items()}
    for kind, (value, by_processor) in median.items():
        share = f"{value / median['plain copy'][0]:.2f} of the plain copy"
        share += f", {by_processor / median['plain copy'][1]:.2f} in the processor's time"
        print(f"{kind:24} {value / 1e6:7.0f} Mtok/s   {share}   {[round(v / 1e6) for v, _ in speeds[kind]]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=100e6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.child:
        first_batch(options.child)
        return
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in ("numpy", "numba")]
    print(f"one core, load {os.getloadavg()[0]:.1f}; python {platform.python_version()}, {', '.join(versions)}")
    print("digests of blocks:", ", ".join(f"{name} {rate:.1f} GB/s" for name, rate in digest_speed().items()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, int(options.tokens))
        rate, efficiency = pack_speed(folder)
        print(f"packing: {rate / 1e6:.1f} M documents/s, {efficiency:.2%} of positions used")
        sheaf_loader(folder, 0)  # writes the pack
        child = [sys.executable, __file__, "--child", name]
        runs = [json.loads(subprocess.run(child, check=True, capture_output=True).stdout) for _ in range(3)]
        first, first_cpu, seek, memory = (statistics.median(run[what] for run in runs) for what in runs[0])
        first, first_cpu, seek = 1e3 * first, 1e3 * first_cpu, 1e3 * seek
        print(f"first batch of a fresh process, imports aside: {first:.0f} ms, {first_cpu:.0f} of the processor")
        print(f"memory besides the mapped files: {memory / 1e6:.0f} MB")
        print(f"seek to step 10 million and its batch: {seek:.1f} ms")
        compare(folder, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
