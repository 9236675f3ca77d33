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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sheaf.processes import die_with_parent


def main(folder: Path) -> int:
    """Train as the rank that the environment names. Returns the exit code."""
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
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        _say({"kind": "", "code": 1, "what": said, "where": "", "why": "", "fix": ""})
        raise
    finally:
        pulse.stop_alarm()
    return 0


def _say(words: dict[str, Any]) -> None:
    """Why this rank fails: to a launcher of ours in shared memory, to another one in a file that it names."""
    from sheaf.parallel.pulse import pulse

    pulse.last_words(words)
    if path := os.environ.get("SHEAF_LAST_WORDS"):
        Path(path).write_text(json.dumps(words))


def _train(folder: Path, *, alone: bool) -> None:
    """alone: no launcher of ours holds the run and looks at its ranks, so rank 0 does, and each looks at itself."""
    from sheaf.model.memory import keep_memory
    from sheaf.parallel.pulse import Patience, pulse
    from sheaf.parallel.ranks import join, threads_for
    from sheaf.train.notes import NotesFile
    from sheaf.train.run import Run, locked
    from sheaf.train.setup import exact
    from sheaf.train.trainer import train_run

    rank, here = int(os.environ["RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    keep_memory()
    run = Run.open(folder)
    if alone:
        pulse.set_alarm(Patience(run.recipe.train.restarts.stuck_after))
    with locked(folder) if alone and rank == 0 else nullcontext(), exact(threads_for(here)), join() as ranks:
        train_run(run, ranks, NotesFile(folder if rank == 0 else None))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
