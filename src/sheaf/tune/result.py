"""What a search found: the best trial as a difference to the recipe, and all trials as the evidence for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sheaf import recipe_yaml
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import TrainingFailed
from sheaf.files import write_file
from sheaf.model.config import ModelConfig
from sheaf.recipe import Recipe
from sheaf.recipe_errors import dotted
from sheaf.recipe_file import OpenRecipe, dump
from sheaf.recipe_marks import with_values
from sheaf.recipe_yaml import KeyPath, Tree
from sheaf.train.optimizer import choose
from sheaf.train.plan import plan_of
from sheaf.train.settings import start_of
from sheaf.tune.setup import RATE, Search
from sheaf.tune.study import Trial
from sheaf.tune.trial import judged
from sheaf.tune.width import transferred

Json = dict[str, Any]


def told(
    search: Search, trials: Sequence[Trial], folder: Path, *, wide: Recipe, corpus: CorpusVersion, hours_up: bool
) -> tuple[Json, dict[KeyPath, Any]]:
    """The values found for the recipe's model, and what `sheaf tune --json` prints:

    {"study", "measure", "judged_on": {"corpus", "sources"}, "time_is_up", "best": TRIAL, "first": TRIAL, "trials":
    [TRIAL], "values": {key: value}, "difference": YAML, "overrides": [word], "transfer": None or {"from", "to",
    "optimizer"}}; TRIAL is {"trial", "values", "state", "percent", "measured", "loss", "bits_per_byte",
    "steps", "seconds", "run", "why"}. Raises TrainingFailed if none could be measured.
    """
    runs = folder.parent.parent / "runs"
    listed = [_trial(search, trial, runs) for trial in trials]
    measured = [one for one in listed if one["measured"] is not None]
    if not measured:
        why = next((one["why"] for one in listed if one["why"]), "time was up first" if hours_up else "")
        fix = "give it more --hours" if hours_up else "change what is marked with {tune: …}"
        raise TrainingFailed("no trial could be measured", where=str(folder), why=why, fix=fix)
    best = min(measured, key=lambda one: (-one["percent"], one["measured"], one["trial"]))
    values, transfer = _chosen(search, trials[best["trial"]], wide, corpus)
    data = {
        "study": str(folder),
        "measure": search.measure,
        "judged_on": {"corpus": corpus.digest, "sources": list(search.on or corpus.source_names)},
        "time_is_up": hours_up,
        "best": best,
        "first": listed[0],
        "trials": listed,
        "values": {dotted(path): value for path, value in values.items()},
        "difference": _fragment(search.recipe, values),
        "overrides": [f"{dotted(path)}={json.dumps(value)}" for path, value in values.items()],
        "transfer": transfer,
    }
    return data, values


def write_recipe(path: Path, recipe: OpenRecipe, data: Json, values: Mapping[KeyPath, Any]) -> None:
    """The whole recipe with the values found. In the recipe's own folder it stays as it was written otherwise, less its
    comments; elsewhere its paths become absolute, and what it leaves out is filled in."""
    filled = with_values(recipe.tree, values)
    best = data["best"]
    head = f"# Found by `sheaf tune`: held-out {data['measure']} {best['measured']:.4f}, trial {best['trial']}\n"
    head += f"# of {len(data['trials'])}, whose runs and losses are in {Path(data['study']).name} of the workspace.\n"
    here = path.absolute().parent == recipe.base
    text = recipe_yaml.write(filled) if here else dump(OpenRecipe(Tree(filled), (), recipe.base).filled())
    write_file(path, (head + text).encode())


def _trial(search: Search, trial: Trial, runs: Path) -> Json:
    lines = {} if trial.run is None else judged(runs / trial.run)
    last = lines.get(trial.reached, {})
    steps = 0 if trial.run is None else int(last.get("step", 0))
    state = "failed" if trial.failed else "dropped" if trial.dropped else "done" if trial.finished else "stopped"
    return {
        "trial": trial.number,
        "values": {dotted(path): value for path, value in search.space.values(trial.params).items()},
        "state": state,
        "percent": trial.reached,
        "measured": trial.losses.get(trial.reached),
        "loss": last.get("loss"),
        "bits_per_byte": last.get("bits_per_byte"),
        "losses": {str(percent): loss for percent, loss in sorted(trial.losses.items())},
        "steps": steps,
        "seconds": _seconds(runs, trial) + sum(line["seconds"] for line in lines.values()),
        "run": None if trial.run is None else str(runs / trial.run),
        "why": trial.reason,
    }


def _seconds(runs: Path, trial: Trial) -> float:
    from sheaf.train.journal import read

    return 0.0 if trial.run is None else sum(float(line["seconds"]) for line in read(runs / trial.run))


def _chosen(search: Search, best: Trial, wide: Recipe, corpus: CorpusVersion) -> tuple[dict[KeyPath, Any], Json | None]:
    """The values for the recipe's own model, and how they were carried over to it, if a narrow one was tried."""
    values = search.space.values(best.params)
    if search.width is None:
        return values, None
    config = plan_of(wide, corpus).config
    if not isinstance(config, ModelConfig):
        raise AssertionError("a model that was narrowed is one of ours")
    recipe = search.recipe.filled(values)
    optimizer, _ = choose(recipe.train.optimizer, start_of(wide))
    carried = transferred(recipe, optimizer, config, width=search.width, rate=float(values[RATE]))
    return values | carried, {"from": search.width, "to": config.hidden_size, "optimizer": optimizer}


def _fragment(recipe: OpenRecipe, values: Mapping[KeyPath, Any]) -> str:
    """The values as a piece of a recipe; a list is written whole."""
    filled = with_values(recipe.tree, values)
    shown: dict[KeyPath, Any] = {}
    for path in values:
        until = next((n for n, part in enumerate(path) if isinstance(part, int)), len(path))
        value: Any = filled
        for part in path[:until]:
            value = value[part]
        shown[path[:until]] = value
    return recipe_yaml.write(with_values(Tree({}), shown))
