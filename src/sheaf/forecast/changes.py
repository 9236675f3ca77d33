"""Changes of a recipe after which it asks for less: the nearest to what was wanted first, each tried alone.

Whoever asks says what fits; those that do are told as words of a command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import orjson

from sheaf.errors import RecipeError, UsageError
from sheaf.forecast.subject import Subject
from sheaf.recipe import Recipe

Json = dict[str, Any]
NEAREST = 3


def nearest(what: str, recipe: Recipe, subject: Subject, fits: Callable[[Recipe], bool]) -> list[str]:
    """The first NEAREST changes that help. what: "memory", "disk", "epochs" or "hours". subject: of the recipe as it
    is. fits: whether a changed recipe does; a UsageError or RecipeError of its is a no."""
    found: list[str] = []
    for changes in {"memory": _for_memory, "disk": _for_disk, "epochs": _for_epochs, "hours": _for_hours}[what](
        recipe, subject
    ):
        if len(found) == NEAREST:
            break
        words = " ".join(f"{key}={_word(value)}" for key, value in changes.items())
        if words in found:
            continue
        try:
            changed = with_changes(recipe, changes)
        except (RecipeError, ValueError):
            continue  # a change that the recipe does not take
        with suppress(RecipeError, UsageError):
            if changed != recipe and fits(changed):
                found.append(words)
    return found


def _for_memory(recipe: Recipe, subject: Subject) -> Iterator[Json]:
    train, full = recipe.train, "train.activation_checkpointing"
    fewer: Json = {"train.micro_batch_tokens": train.sequence_length}
    if subject.settings.micro_tokens > train.sequence_length:
        yield fewer
    if train.activation_memory is None and train.activation_checkpointing != "full":
        yield {full: "selective"}
        yield {full: "full"}
        yield {full: "full", **fewer}
    if train.precision == "fp32":
        yield {"train.precision": "bf16"}
    if train.optimizer in ("adamw", "schedule-free"):
        yield {"train.optimizer": "muon"}
    yield from _smaller_models(recipe, subject)


def _smaller_models(recipe: Recipe, subject: Subject) -> Iterator[Json]:
    """The same model with fewer layers, and then narrower; of a published one there is nothing to change."""
    if recipe.model.from_ is not None:
        return
    config = subject.plan.config
    layers = config.num_hidden_layers
    while layers > 1:
        layers = max(1, 2 * layers // 3)
        yield {"model.layers": layers}
    hidden = config.hidden_size
    while hidden > 128:
        hidden = max(64, hidden // 2 // 64 * 64)
        heads = max(1, hidden // 64)
        yield {
            "model.hidden_size": hidden, "model.heads": heads, "model.kv_heads": heads,
            "model.intermediate_size": 3 * hidden,
        }  # fmt: skip


def _for_disk(recipe: Recipe, subject: Subject) -> Iterator[Json]:
    if recipe.train.keep > 2:
        yield {"train.keep": 2}
    if recipe.train.keep_best:
        yield {"train.keep_best": False}
        yield {"train.keep": 2, "train.keep_best": False}
    yield from _smaller_models(recipe, subject)


def _for_epochs(recipe: Recipe, subject: Subject) -> Iterator[Json]:
    asked, most = subject.asked or 1, subject.most or 1
    yield {"train.budget": {"steps": most}}
    more = asked / most
    caps = {name: entry.max_epochs for name, entry in recipe.mixture.items() if entry.max_epochs is not None}
    yield {f"mixture.{name}.max_epochs": round(cap * more * 1.02 + 0.05, 1) for name, cap in caps.items()}
    for name in sorted(caps, key=lambda name: -(recipe.mixture[name].weight)):
        yield {f"mixture.{name}.max_epochs": round((caps[name] or 1.0) * more * len(caps) * 1.02 + 0.05, 1)}
    yield {"train.budget": {"epochs": min((cap or 1.0 for cap in caps.values()), default=1.0)}}
    smaller = int(recipe.train.batch_tokens * most / asked) // recipe.train.sequence_length
    if recipe.train.budget.steps is not None and smaller:
        yield {"train.batch_tokens": smaller * recipe.train.sequence_length}


def _for_hours(recipe: Recipe, subject: Subject) -> Iterator[Json]:
    hours = recipe.train.budget.hours or 1.0
    for times in (2, 10, 100, 1000):
        yield {"train.budget": {"hours": hours * times}}
    fewer = recipe.train.batch_tokens
    while fewer >= 2 * recipe.train.sequence_length:
        fewer //= 2
        yield {"train.batch_tokens": fewer}
    yield from _smaller_models(recipe, subject)


def with_changes(recipe: Recipe, changes: Json) -> Recipe:
    """The recipe with these keys (as `train.keep`) changed. Raises pydantic's ValueError for what it does not take."""
    data: Json = orjson.loads(recipe.model_dump_json(by_alias=True, exclude_unset=True))
    for key, value in changes.items():
        *path, last = key.split(".")
        at = data
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return Recipe.model_validate_json(orjson.dumps(data))


def _word(value: object) -> str:
    if isinstance(value, dict):
        return "'{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}'"
    return str(value).lower() if isinstance(value, bool) else str(value)
