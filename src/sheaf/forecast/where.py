"""Where a run is to take place: on this machine, as it was measured, or on one of published figures; or, where nobody
measures (`train` must not wait for it), on this one at rates that are only assumed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sheaf.console import Console
from sheaf.files import folder_of
from sheaf.forecast.calibrate import kind_of
from sheaf.forecast.here import Measured, measured
from sheaf.forecast.layouts import Place
from sheaf.forecast.machines import Accelerator, machine_of
from sheaf.forecast.subject import Subject
from sheaf.parallel.links import Link, Machine
from sheaf.parallel.ranks import memory_for, threads_for
from sheaf.parallel.rates import Rates
from sheaf.train.settings import CORE_FLOPS, GPU_FLOPS

Json = dict[str, Any]
MEASURED_ERROR, COMPILED_ERROR, ASSUMED_ERROR = 0.2, 0.35, 0.6  # of a step's seconds
# Assumed of a machine that nobody measured: attention against products, an optimiser's bytes/s, gloo over loopback.
ATTENTION, UPDATE, LINK = 0.3, 5e9, Link(1e9, 5e-4)


@dataclass(frozen=True)
class Where:
    """measured, known: how the place's figures were come by; neither: they are assumed."""

    place: Place
    measured: Measured | None = None
    known: Accelerator | None = None

    @property
    def kind(self) -> str:
        """Whose runs' experience applies here (`calibrate.py`)."""
        return kind_of(gpu=self.place.gpu, measured=self.measured is not None)

    def error(self, subject: Subject) -> float:
        if self.known is not None:
            return self.known.error
        if self.measured is None:
            return ASSUMED_ERROR
        return COMPILED_ERROR if subject.settings.compile else MEASURED_ERROR

    def to_json(self) -> Json:
        machine, one = self.place.machine, self.known
        return {
            "name": "this machine" if one is None else one.name,
            "ranks": self.place.ranks,
            "rates": asdict(machine.rates),
            "host_bytes_per_second": _finite(machine.host.bytes_per_second),
            "hosts_bytes_per_second": _finite(machine.hosts.bytes_per_second),
            "memory_bytes": self.place.room,
            "source": one.source if one else "measured" if self.measured else "assumed: `sheaf plan` measures it",
            "probe_seconds": self.measured and self.measured.seconds,
        }


def here(subject: Subject, ranks: int, console: Console) -> Where:
    """This machine, measured now."""
    folder = folder_of(subject.recipe.workspace)
    console.note(f"measuring this machine: {ranks} {'rank' if ranks == 1 else 'ranks'}, some seconds, a minute at most")
    found = measured(subject.facts(ranks), ranks, folder if folder.is_dir() else None)
    if found is None:
        console.note("measuring took too long and was ended: the machine is busy; what follows rests on assumed rates")
        return assumed(ranks)
    return Where(Place(found.machine, ranks, memory_for(ranks), found.gpu), found)


def there(known: Accelerator, ranks: int) -> Where:
    return Where(Place(machine_of(known, ranks), ranks, known.memory_bytes, gpu=True), None, known)


def assumed(ranks: int) -> Where:
    """This machine, not measured."""
    gpu = torch.cuda.is_available()
    flops = GPU_FLOPS if gpu else CORE_FLOPS * threads_for(ranks)
    rates = Rates(flops, ATTENTION * flops, flops, flops, UPDATE)
    return Where(Place(Machine(rates, LINK, LINK, ranks), ranks, memory_for(ranks), gpu))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
