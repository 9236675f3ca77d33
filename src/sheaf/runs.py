"""Where runs are: the one that a word on the command line means, and the newest one when none is given; and what
run.json says of one. Without torch: a verb that only reads must not wait for it.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import orjson

from sheaf.errors import CorruptStore, RecipeError, UsageError
from sheaf.files import folder_of

KEYS = frozenset({"format", "name", "started", "recipe", "corpus", "order", "settings", "ranks", "result"})
DEFAULT_RECIPE = Path("sheaf.yaml")


def find_run(run: str | Path | None = None) -> Path:
    """A run's folder, from a path, from a name in the current workspace, or (None) the newest one there."""
    if run is None:
        return _newest(current_workspace())
    if is_run(Path(run)):
        return Path(run)
    workspace = current_workspace()
    if is_run(workspace / "runs" / str(run)):
        return workspace / "runs" / str(run)
    names = [path.name for path in runs_of(workspace)]
    near = difflib.get_close_matches(Path(run).name, names, n=1)
    raise UsageError(
        "no such run",
        where=str(run),
        why=f"neither a run's folder nor the name of one in {workspace}",
        fix=f"did you mean {near[0]}?" if near else _known(names),
    )


def current_workspace(recipe: Path = DEFAULT_RECIPE) -> Path:
    """The workspace that the recipe here names, or ./workspace where there is no readable recipe."""
    from sheaf.recipe_file import load

    try:
        return folder_of(load(recipe, []).workspace) if recipe.exists() else Path("workspace")
    except RecipeError:
        # A recipe that is being edited must not hide the runs that were made before.
        return Path("workspace")


def runs_of(workspace: Path) -> list[Path]:
    """Every run of a workspace, the newest first."""
    folders = [path for path in (workspace / "runs").glob("*") if is_run(path)]
    return sorted(folders, key=_started, reverse=True)


def read_record(run: Path) -> dict[str, Any]:
    """The content of run.json. Raises CorruptStore if it cannot be read or is not one."""
    path = run / "run.json"
    try:
        record = orjson.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        if missing := KEYS - record.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError) as error:
        raise CorruptStore(
            "the record of a run cannot be read",
            where=str(path),
            why=str(error),
            fix="restore the file, or name another run",
        ) from error
    return record


def _started(run: Path) -> tuple[str, str]:
    try:
        return str(read_record(run)["started"]), run.name
    except CorruptStore:
        return "", run.name  # the oldest: whoever names no run means one that works


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _newest(workspace: Path) -> Path:
    runs = runs_of(workspace)
    if not runs:
        raise UsageError(
            "there is no run yet",
            where=str(workspace / "runs"),
            fix="`sheaf train` makes one; or name the folder of a run",
        )
    return runs[0]


def _known(names: list[str]) -> str:
    return f"runs here: {', '.join(names[:5])}" if names else "`sheaf train` makes one"
