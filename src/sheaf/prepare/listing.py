"""What a recipe's source holds now: its place's listing, of the wanted split, with labels, less our own workspace."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from sheaf.corpus.workspace import Workspace
from sheaf.errors import RecipeError
from sheaf.files import folder_of
from sheaf.formats.labels import MEDIA as LABELS
from sheaf.prepare import labels
from sheaf.recipe import Recipe, SourceSpec
from sheaf.sources.base import Item, Refusal
from sheaf.sources.registry import open_source
from sheaf.sources.splits import split_of


def found_in(spec: SourceSpec, recipe: Recipe) -> Iterable[Item | Refusal]:
    """Items and refusals of one source. Raises what its place raises, and RecipeError if it is the workspace itself."""
    workspace = folder_of(recipe.workspace)
    source = open_source(_without_workspace(spec, workspace), Workspace(workspace).spool)
    found = source.list_items()
    if spec.label is not None:  # before splits are told apart: a table may lie above them
        found = labels.labelled(list(found), source, spec, recipe.prepare.limits)
    if spec.split is not None:
        found = (x for x in found if split_of(x.path) == spec.split or _is_above_splits(x))
    return found


def _is_above_splits(x: Item | Refusal) -> bool:
    """A table of labels of all splits."""
    return isinstance(x, Item) and x.media == LABELS and split_of(x.path) == ""


def _without_workspace(spec: SourceSpec, workspace: Path) -> SourceSpec:
    """The source less our own workspace, where that lies inside it: what we write is not what the user gathers."""
    root = Path(spec.uri.removeprefix("file://"))
    if "://" in spec.uri.removeprefix("file://") or not workspace.resolve().is_relative_to(root.resolve()):
        return spec
    if workspace.resolve() == root.resolve():
        raise RecipeError(
            f"the source '{spec.name}' and the workspace are the same folder",
            where=str(workspace),
            fix="set `workspace:` to a folder of its own; it may lie inside the source",
        )
    inside = glob.escape(str(workspace.resolve().relative_to(root.resolve())))
    return spec.model_copy(update={"exclude": (*spec.exclude, f"{inside}/**")})
