"""One rank of a run: `python -m sheaf.train.worker RUN_FOLDER`, started by `launch`, or by torchrun for many machines.

Says nothing on its own: rank 0 writes notes into the run's folder and the parent shows them. Why it fails is told to
the parent in shared memory (`pulse`), so that it can raise the error again, or on stderr where torchrun is the parent;
the exit code is the error's. Nothing that takes time is imported before this process is bound to its parent's life: an
orphan would write into a run that is being resumed. (`forker`, which is a rank's parent on one machine, has imported
it all before.)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sheaf.processes import die_with_parent, leave

if TYPE_CHECKING:
    from sheaf.parallel.ranks import Ranks

LAST_WORDS = "SHEAF_LAST_WORDS"  # variable of a launcher that sees no memory of ours: a file for them
UNKNOWN = "-"  # in place of a run's folder, where another rank knows it


def main(folder: Path | None) -> int:
    """Train as the rank that the environment names. folder: of the run; None: as another rank says. Returns the exit
    code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until training notes it: a Ctrl-C is the launcher's to pass on
    launcher = os.environ.get("SHEAF_LAUNCHER")
    die_with_parent(int(launcher) if launcher else os.getppid())
    from sheaf.errors import SheafError
    from sheaf.parallel.pulse import pulse

    if launcher is not None:
        pulse.connect(int(os.environ["RANK"]))
    try:
        _train(folder, alone=launcher is None)
    except SheafError as error:
        words = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
        _say({"kind": type(error).__name__, "code": error.exit_code, **words})
        if launcher is None:
            print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except Exception as error:  # noqa: BLE001  (it is told, and this process ends)
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        _say({"kind": "", "code": 1, "what": said, "where": "", "why": "", "fix": ""})
        traceback.print_exc()
        return 1
    finally:
        pulse.stop_alarm()
    return 0


def _say(words: dict[str, Any]) -> None:
    """Why this rank fails: to a launcher of ours in shared memory, to another one in a file that it names."""
    from sheaf.parallel.pulse import pulse

    pulse.last_words(words)
    if path := os.environ.get(LAST_WORDS):
        Path(path).write_text(json.dumps(words))


def _train(folder: Path | None, *, alone: bool) -> None:
    """alone: no launcher of ours holds the run and looks at its ranks, so rank 0 does, and each looks at itself."""
    from sheaf.errors import OutOfMemory
    from sheaf.model.memory import keep_memory
    from sheaf.parallel.pulse import Patience, pulse
    from sheaf.parallel.ranks import join, threads_for
    from sheaf.train.notes import NotesFile
    from sheaf.train.out_of_memory import smaller_or_raise
    from sheaf.train.run import Run, locked
    from sheaf.train.setup import exact
    from sheaf.train.trainer import train_run

    rank, here = int(os.environ["RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    keep_memory()
    with exact(threads_for(here)), join() as ranks:
        folder = _told(folder, ranks) if alone else folder
        if folder is None:
            raise AssertionError("a launcher of ours knows the run")
        run = Run.open(folder)
        if alone:
            pulse.set_alarm(Patience(run.recipe.train.restarts.stuck_after))
        notes = NotesFile(folder if rank == 0 else None)
        with locked(folder) if alone and rank == 0 else nullcontext():
            try:
                train_run(run, ranks, notes)
            except OutOfMemory as error:
                if alone and LAST_WORDS not in os.environ:  # torchrun starts all again, and they read the run again
                    smaller_or_raise(Run.open(folder), error, notes.note, ranks.world)
                raise


def _told(folder: Path | None, ranks: Ranks) -> Path:
    """The run's folder: as this rank knows it, or else as the first one does that knows it. Called by every rank."""
    from sheaf.errors import UsageError

    knowing = [int(row[0]) for row in ranks.rows([] if folder is None else [[ranks.rank]], 1)]
    first = min(knowing, default=None)
    path = ranks.rows([[byte] for byte in os.fsencode(folder)] if folder is not None and ranks.rank == first else [], 1)
    if first is None:
        raise UsageError("no rank knows which run to train", fix="on one machine, give the run's folder")
    return folder or Path(os.fsdecode(bytes(int(row[0]) for row in path)))


if __name__ == "__main__":
    leave(main(None if sys.argv[1] == UNKNOWN else Path(sys.argv[1])))
