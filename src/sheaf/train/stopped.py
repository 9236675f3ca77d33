"""What to say of a run that a signal has stopped."""

from __future__ import annotations

import signal
from pathlib import Path

from sheaf.errors import Interrupted
from sheaf.train.checkpoint import list_checkpoints, step_of


def interrupted(run: Path, number: int) -> Interrupted:
    """What to raise after a signal; it says what there is to go on from."""
    stopped, newest = f"stopped by {signal.Signals(number).name}", next(iter(list_checkpoints(run)), None)
    if newest is None:
        error = Interrupted(
            f"{stopped}; no checkpoint yet", where=str(run), fix=f"start again with: sheaf resume {run}"
        )
    else:
        what = f"{stopped}; there is a checkpoint of step {step_of(newest):,}"
        error = Interrupted(what, where=str(run), fix=f"go on with: sheaf resume {run}")
    error.exit_code = 128 + number
    return error
