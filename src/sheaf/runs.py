"""Where runs are: the one that a word on the command line means, and the newest one when none is given."""

from __future__ import annotations

import difflib
from pathlib import Path

import orjson

from sheaf.errors import RecipeError, UsageError

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
        return Path(load(recipe, []).workspace) if recipe.exists() else Path("workspace")
    except RecipeError:
        # A recipe that is being edited must not hide the runs that were made before.
        return Path("workspace")


def runs_of(workspace: Path) -> list[Path]:
    """Every run of a workspace, the newest first."""
    folders = [path for path in (workspace / "runs").glob("*") if is_run(path)]
    return sorted(folders, key=_started, reverse=True)


def _started(run: Path) -> tuple[str, str]:
    return str(orjson.loads((run / "run.json").read_bytes()).get("started", "")), run.name


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
