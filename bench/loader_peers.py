"""Loader beside its peers: the same number of tokens, sequence length 2048, batch 8, one core, one run.

Every loader has a process of its own on the same core; they work in turns, some seconds each, and the median of the
rounds counts. Three rates: of processor time, for the quarter of the pieces of 16 batches that were least disturbed;
of processor time; by the clock. On a busy machine read the first. All are shuffled
but the plain copy (np.memmap to torch, in order: the ceiling). Sheaf alone packs, mixes three sources, keeps documents
apart and can say where a token is from; its batch has inputs, labels and offsets of documents ("all": positions and
document numbers too), those of the peers inputs alone.

litdata (fixed blocks, TokensLoader) and mosaicml-streaming (samples cut before) run in a Python of their own, as they
pin other things: make one with torch==2.13.0 torchvision==0.28.0 litdata==0.2.76 mosaicml-streaming==0.13.0. Where
torchvision does not load beside a CPU torch, an empty module stands in for it; tokens have no pictures.

Use: python bench/loader_peers.py --peers PEERS/bin/python [--tokens 100e6] [--seconds 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

T, BATCH, TOGETHER = 2048, 8, 16
OURS = ("plain copy", "random crops", "sheaf", "sheaf, thread", "sheaf, all")
PEERS = ("litdata", "mosaicml-streaming")


def spans(tokens: int, size: int = 1 << 16) -> list[tuple[int, int]]:
    return [(a, min(a + size, tokens)) for a in range(0, tokens, size)]


def lit_item(span: tuple[int, int], path: str) -> Any:
    import torch

    return torch.from_numpy(np.memmap(path, np.uint16, "r")[span[0] : span[1]].astype(np.int32))


class StandIn(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def without_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("", ".datasets", ".transforms", ".transforms.functional", ".io"):
            sys.modules["torchvision" + name] = StandIn("torchvision" + name)


def litdata(folder: Path) -> Iterator[Any]:
    from functools import partial

    without_torchvision()
    import litdata as lit

    out, path = folder / "litdata", folder / "flat.bin"
    if not out.exists():
        lit.optimize(
            fn=partial(lit_item, path=str(path)), inputs=spans(path.stat().st_size // 2), output_dir=str(out),
            chunk_size=T * 8000, item_loader=lit.TokensLoader(block_size=T), num_workers=1,
        )  # fmt: skip
    data = lit.StreamingDataset(str(out), item_loader=lit.TokensLoader(block_size=T), shuffle=True, drop_last=True)
    loader = lit.StreamingDataLoader(data, batch_size=BATCH, num_workers=0)
    return (batch.long() for _ in itertools.count() for batch in loader)


def streaming(folder: Path) -> Iterator[Any]:
    without_torchvision()
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    out = folder / "mds"
    if not out.exists():
        flat = np.memmap(folder / "flat.bin", np.uint16, "r")
        columns = {"tokens": f"ndarray:uint16:{T}"}
        with MDSWriter(out=str(out), columns=columns, size_limit="64mb") as writer:
            for i in range(len(flat) // T):
                writer.write({"tokens": np.asarray(flat[i * T : (i + 1) * T])})
    data = StreamingDataset(local=str(out), batch_size=BATCH, shuffle=True, shuffle_seed=1, num_canonical_nodes=1)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=0)
    return (batch["tokens"].long() for _ in itertools.count() for batch in loader)


def ours(kind: str, folder: Path) -> Iterator[Any]:
    import torch

    from loader import copy, crops, sheaf_loader
    from sheaf.order.torch_batches import ALL

    if kind in ("plain copy", "random crops"):
        return map(torch.from_numpy, (copy if kind == "plain copy" else crops)(folder))
    names = ALL if kind == "sheaf, all" else ("input_ids", "labels", "cu_seqlens")
    return iter(sheaf_loader(folder, 2 if kind == "sheaf, thread" else 0).torch(names))


def child(kind: str, folder: Path) -> None:
    """Answers every number of seconds on stdin with the rates of that long."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    batches = {"litdata": litdata, "mosaicml-streaming": streaming}.get(kind, lambda at: ours(kind, at))(folder)
    for _ in range(50):
        batch = next(batches)
        ids = batch["input_ids"] if isinstance(batch, dict) else batch
        assert ids.shape == (BATCH, T) and ids.element_size() == 8
    print("ready", file=sys.__stdout__, flush=True)
    for line in sys.stdin:
        wall, times = time.perf_counter(), list[float]()
        while time.perf_counter() - wall < float(line):
            processor = time.process_time()
            for _ in range(TOGETHER):
                next(batches)
            times.append(time.process_time() - processor)
        wall, tokens = time.perf_counter() - wall, TOGETHER * BATCH * T
        rates = [tokens / np.quantile(times, 0.25), tokens * len(times) / sum(times), tokens * len(times) / wall]
        print(json.dumps(rates), file=sys.__stdout__, flush=True)
    os._exit(0)  # peers' threads and shared memory take their time


def start(kind: str, folder: Path, python: str) -> subprocess.Popen[str]:
    words = [python, __file__, "--child", kind, "--folder", str(folder)]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    answer(process, "ready")
    return process


def answer(process: subprocess.Popen[str], begins: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(begins):  # peers print too
            return line
    raise SystemExit(f"{process.args} ended before it answered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the Python that has litdata and mosaicml-streaming; without it, ours only")
    parser.add_argument("--tokens", type=float, default=100e6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the data here, and use what is there")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    from loader import make

    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(exist_ok=True)
        if not (folder / "flat.bin").exists():
            make(folder, int(options.tokens))
        pythons = {kind: sys.executable for kind in OURS} | {kind: options.peers for kind in PEERS if options.peers}
        processes = {kind: start(kind, folder, python) for kind, python in pythons.items()}
        rates: dict[str, list[list[float]]] = {kind: [] for kind in processes}
        for _ in range(options.rounds):
            for kind, process in processes.items():
                assert process.stdin is not None
                process.stdin.write(f"{options.seconds}\n")
                process.stdin.flush()
                rates[kind].append(json.loads(answer(process, "[")))
        for process in processes.values():
            process.kill()
    show(rates)


def show(rates: dict[str, list[list[float]]]) -> None:
    print(f"load {os.getloadavg()[0]:.1f}; Mtok/s: least disturbed, processor time, clock; sheaf's / its, of each")
    median = {kind: [statistics.median(one) for one in zip(*rows, strict=True)] for kind, rows in rates.items()}
    for kind, figures in median.items():
        times = " ".join(f"{mine / its:7.2f}" for mine, its in zip(median["sheaf"], figures, strict=True))
        print(f"{kind:20} {' '.join(f'{x / 1e6:8.1f}' for x in figures)}   {times}")


if __name__ == "__main__":
    main()
