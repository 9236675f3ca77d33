"""Which runs have seen certain records: at which steps, and which of their checkpoints know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.errors import SheafError
from sheaf.runs import runs_of
from sheaf.train.checkpoint import list_checkpoints, step_of
from sheaf.train.damage import uses_of
from sheaf.train.journal import read as read_journal
from sheaf.train.run import Run
from sheaf.train.setup import order_of

Json = dict[str, Any]


def runs_that_saw(workspace: Workspace, ids_in: Callable[[CorpusVersion], np.ndarray]) -> list[Json]:
    """[{"run", "uses", "first_step", "last_step", "steps", "checkpoints"}] of each run that trained on one of them.

    steps: those that did, as ranges with both ends, [[0, 4], [9, 9]]. ids_in: S16, the ids meant, for the version that
    a run was trained on. A run whose version cannot be opened any more has "why" instead: nobody can say what it saw.
    A checkpoint counts when it was written after the first use.
    """
    found: list[Json] = []
    for folder in runs_of(workspace.root):
        try:
            run = Run.open(folder)
            told = _saw(run, run.corpus(), ids_in)
        except SheafError as error:
            told = {"run": folder.name, "why": error.what}
        if told is not None:
            found.append(told)
    return found


def _saw(run: Run, corpus: CorpusVersion, ids_in: Callable[[CorpusVersion], np.ndarray]) -> Json | None:
    ids = np.ascontiguousarray(corpus.documents.id).view("S16").reshape(-1)
    numbers = np.flatnonzero(np.isin(ids, ids_in(corpus)))
    lines = read_journal(run.folder)
    uses = uses_of(order_of(run.recipe, corpus, "train"), numbers, lines) if len(numbers) and lines else []
    if not uses:
        return None
    steps = _ranges(np.unique([use.step for use in uses]))
    first = steps[0][0]
    return {
        "run": run.folder.name,
        "uses": len(uses),
        "first_step": first,
        "last_step": steps[-1][1],
        "steps": steps,
        "checkpoints": sorted(c.name for c in list_checkpoints(run.folder) if step_of(c) > first),
    }


def _ranges(steps: NDArray[np.int64]) -> list[list[int]]:
    """Ascending numbers, none twice, as [first, last] of each stretch without a gap."""
    stretches = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
    return [[int(stretch[0]), int(stretch[-1])] for stretch in stretches]
