"""One rank of a run: `python -m sheaf.train.worker RUN_FOLDER`, started by `launch`, or by torchrun for many machines.

Says nothing on its own: rank 0 writes notes into the run's folder and the parent shows them. A named error is left as
failure-<rank>.json, so that the parent can raise it again; the exit code is the error's. Nothing that takes time is
imported before this process is bound to its parent's life: an orphan would write into a run that is being resumed.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from sheaf.processes import die_with_parent


def main(folder: Path) -> int:
    """Train as the rank that the environment names. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until training notes it: a Ctrl-C is the launcher's to pass on
    launcher = os.environ.get("SHEAF_LAUNCHER")
    die_with_parent(int(launcher) if launcher else os.getppid())
    return _train(folder, alone=launcher is None)


def _train(folder: Path, *, alone: bool) -> int:
    """alone: no launcher of ours holds the run, so rank 0 does."""
    from sheaf.errors import SheafError
    from sheaf.files import write_json
    from sheaf.model.memory import keep_memory
    from sheaf.parallel.ranks import PeerLost, join, threads_for
    from sheaf.train.notes import NotesFile
    from sheaf.train.run import Run, locked
    from sheaf.train.setup import exact
    from sheaf.train.trainer import train_run

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    keep_memory()
    try:
        with locked(folder) if alone and rank == 0 else nullcontext(), exact(threads_for(world)), join() as ranks:
            train_run(Run.open(folder), ranks, NotesFile(folder if rank == 0 else None))
    except PeerLost as error:
        return error.exit_code  # the launcher knows which rank was the cause
    except SheafError as error:
        words = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
        content = {"kind": type(error).__name__, "code": error.exit_code, **words}
        write_json(folder / f"failure-{rank}.json", content)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
