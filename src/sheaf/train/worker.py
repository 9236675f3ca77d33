"""One rank of a run: `python -m sheaf.train.worker RUN_FOLDER`, started by torchrun or by `launch`.

Says nothing on its own: rank 0 writes notes into the run's folder and the parent shows them. A named error is left as
failure-<rank>.json, so that the parent can raise it again; the exit code is the error's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from sheaf.errors import SheafError
from sheaf.files import write_json
from sheaf.parallel.ranks import PeerLost, join, threads_for
from sheaf.train.notes import NotesFile
from sheaf.train.run import Run
from sheaf.train.setup import exact
from sheaf.train.trainer import train_run

PR_SET_PDEATHSIG = 1


def main(folder: Path) -> int:
    _die_with_parent()
    run = Run.open(folder)
    try:
        with exact(threads_for(int(os.environ["WORLD_SIZE"]))), join() as ranks:
            train_run(run, ranks, NotesFile(folder) if ranks.rank == 0 else NotesFile(None))
    except PeerLost as error:
        return error.exit_code  # the launcher knows which rank was the cause
    except SheafError as error:
        words = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
        content = {"kind": type(error).__name__, "code": error.exit_code, **words}
        write_json(folder / f"failure-{os.environ['RANK']}.json", content)
        return error.exit_code
    return 0


def _die_with_parent() -> None:
    """A killed launcher takes its ranks along: orphans would go on writing into a run that is being resumed."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
