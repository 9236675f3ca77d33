"""This machine, measured: ranks are started as a run would start them, and try what one is made of (`train/probe.py`).

No network beyond loopback, no data; nothing is written but the answer, into a folder that goes. Cost: the ranks' start
and some seconds of all their cores. A minute after they were started they are killed, whatever they do: a probe must
not stand in the way of what else runs here.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from sheaf.errors import EnvironmentProblem
from sheaf.files import write_json
from sheaf.forecast.run_time import DISK
from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.parallel.layout import Facts
from sheaf.parallel.links import Link, Machine
from sheaf.parallel.rates import Rates

ANSWER = "answer.json"
TRIED_BYTES = 32 << 20  # written to a disk
MOST_SECONDS = 60.0
FIELDS = ("sequence_length", "batch", "micro_tokens", "compile", "packing", "memory_bytes", "compute_bytes", "span")


@dataclass(frozen=True)
class Measured:
    """machine: what its ranks reach. start_seconds: until they could begin. seconds: that all took. disk: bytes/s that
    a file is written and synced at. gpu: whether each rank has one."""

    machine: Machine
    start_seconds: float
    seconds: float
    disk: float
    gpu: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Measured:
        found = data["machine"]
        host, hosts = (_link(found[name]) for name in ("host", "hosts"))
        machine = Machine(Rates(**found["rates"]), host, hosts, int(found["host_ranks"]))
        return Measured(machine, data["start_seconds"], data["seconds"], data["disk"], data["gpu"])


def measured(facts: Facts, ranks: int, folder: Path | None = None) -> Measured | None:
    """What so many ranks of this machine reach with this model; None if they took more than a minute. folder: whose
    disk is tried; default: none is, a usual one is assumed. Raises EnvironmentProblem if the ranks cannot be had."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sheaf-plan-") as name:
        here = Path(name)
        spec = {"config": facts.config.to_hf(), **{field: getattr(facts, field) for field in FIELDS}}
        write_json(here / "spec.json", spec)
        with forker("sheaf.forecast.probe_rank", ("sheaf.train.probe",), ranks) as starts:
            ended = run_once(starts, [name], ranks, here, within=MOST_SECONDS)
        if ended.late:
            return None
        if ended != Ended():
            left = sorted(here.glob("failure-*.txt"))
            why = left[0].read_text() if left else "they were stopped"
            raise EnvironmentProblem("the ranks that were to be measured did not end well", why=why)
        answer = orjson.loads((here / ANSWER).read_bytes())
    disk = DISK if folder is None else _disk(folder)
    seconds = time.monotonic() - begun
    start = answer["began"] - begun
    return Measured.from_json({**answer, "start_seconds": start, "seconds": seconds, "disk": disk})


def _link(data: dict[str, Any]) -> Link:
    """JSON has no infinity: of one rank alone, whose link is as fast as one likes."""
    rate = data["bytes_per_second"]
    return Link(math.inf if rate is None else rate, data["latency"])


def _disk(folder: Path) -> float:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".plan-") as file:
        start = time.perf_counter()
        file.write(bytes(TRIED_BYTES))
        file.flush()
        os.fsync(file.fileno())
        return TRIED_BYTES / (time.perf_counter() - start)
