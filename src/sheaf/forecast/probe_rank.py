"""One rank of a probe: `python -m sheaf.forecast.probe_rank FOLDER`, started by `here.measured`."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import orjson
import torch

from sheaf.files import write_json
from sheaf.forecast.here import ANSWER, FIELDS
from sheaf.model.families import config_from_hf
from sheaf.model.memory import keep_memory
from sheaf.parallel.forker import LAUNCHER
from sheaf.parallel.layout import Facts
from sheaf.parallel.ranks import alone_or_joined, threads_for
from sheaf.processes import die_with_parent, leave
from sheaf.train.probe import machine_here
from sheaf.train.setup import exact


def main(folder: Path) -> int:
    """Measure with the others; rank 0 writes the answer. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(os.environ[LAUNCHER]))
    spec = orjson.loads((folder / "spec.json").read_bytes())
    facts = Facts(config=config_from_hf(spec["config"]), **{name: spec[name] for name in FIELDS})
    dtype = torch.bfloat16 if facts.compute_bytes == 2 else torch.float32
    keep_memory()
    try:
        with exact(threads_for(int(os.environ["WORLD_SIZE"]))), alone_or_joined() as ranks:
            began = time.monotonic()  # the launcher's clock: of one kernel
            machine = machine_here(ranks, facts, dtype)
            if ranks.rank == 0:
                write_json(
                    folder / ANSWER, {"began": began, "gpu": ranks.device.type == "cuda", "machine": asdict(machine)}
                )
    except Exception as error:  # noqa: BLE001  (the parent tells it)
        traceback.print_exc()
        (folder / f"failure-{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    leave(main(Path(sys.argv[1])))
