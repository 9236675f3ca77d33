"""Weights that change during a run: from shares of the run to steps, and by hand where a run is resumed.

A recipe may say `at: 80%`. How many steps that is depends on the budget, which may be in epochs or tokens, and these on
what the mixture draws: so steps are counted, changes put at their shares of them, and counted again until nothing
moves. Done before a run begins and written into its run.json: a run's order is a function of that file.

By hand (`sheaf resume RUN mixture.wiki.weight=3`) a change begins at the step that the run goes on with. Steps before
it are what they were, so they can be traced and made again; the run.json tells the change, when it was made, and the
journal's line of its first step has the new shares.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from pydantic import ValidationError

from sheaf import recipe_yaml
from sheaf.errors import UsageError
from sheaf.order.order import Order
from sheaf.recipe import Change, Recipe
from sheaf.train.settings import planned_steps

_ROUNDS = 8  # each moves the changes by less; after that they stand where they are


def with_steps(recipe: Recipe, order_of: Callable[[Recipe], Order]) -> Recipe:
    """The recipe with every change of weights at a step. order_of: of a recipe whose changes are at steps."""
    if not any(isinstance(change.at, str) for change in recipe.curriculum):
        return recipe
    placed, steps = recipe.model_copy(update={"curriculum": ()}), -1
    for _ in range(_ROUNDS):
        found, _reasons = planned_steps(recipe.train.budget, order_of(placed))
        if found is None:
            raise AssertionError("a recipe with shares of a run has no budget in hours")
        if found == steps:
            break
        steps = found
        placed = recipe.model_copy(update={"curriculum": tuple(_placed(c, steps) for c in recipe.curriculum)})
    return placed


def _placed(change: Change, steps: int) -> Change:
    if isinstance(change.at, int):
        return change
    return change.model_copy(update={"at": int(Fraction(change.at.removesuffix("%")) / 100 * steps)})


def weights_of(words: Sequence[str]) -> dict[str, float]:
    """{source: weight} of words such as mixture.wiki.weight=3. Raises UsageError for any other word."""
    weights: dict[str, float] = {}
    for word in words:
        key, _, value = word.partition("=")
        name = key.removeprefix("mixture.").removesuffix(".weight")
        if key != f"mixture.{name}.weight" or not name:
            raise UsageError(
                f"'{word}' cannot be changed in a run that has begun",
                why="its settings are part of what its steps are; only the weights of its sources may change",
                fix="write mixture.SOURCE.weight=NUMBER, or start a new run with `sheaf train`",
            )
        weights[name] = recipe_yaml.read(value, word).value
    return weights


def changed(record: Mapping[str, Any], recipe: Recipe, step: int, weights: Mapping[str, float]) -> dict[str, Any]:
    """What of run.json is other once the weights change at a step. record: run.json; recipe: the one in it."""
    try:
        change = Change.model_validate({"at": step, "weights": dict(weights)})
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        raise UsageError("these weights cannot be used", why=why, fix="give numbers of at least 0") from None
    at = [c.at for c in recipe.curriculum if isinstance(c.at, int)]
    place = sum(other <= step for other in at)
    curriculum = [*recipe.curriculum[:place], change, *recipe.curriculum[place:]]
    told = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "step": step, "weights": dict(weights)}
    return {
        "recipe": {**record["recipe"], "curriculum": [c.model_dump(mode="json") for c in curriculum]},
        "changes": [*record.get("changes", []), told],
    }
