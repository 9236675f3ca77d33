"""What a search works on, decided before the first trial: the open places, the recipe of a trial, what judges it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sheaf.corpus.version import CorpusVersion
from sheaf.errors import RecipeError, UsageError
from sheaf.files import digest_json
from sheaf.recipe import Budget, Recipe, Train
from sheaf.recipe_file import OpenRecipe, parse_tokens
from sheaf.recipe_marks import Mark
from sheaf.recipe_yaml import KeyPath
from sheaf.train.optimizer import choose, default_rate
from sheaf.train.plan import plan_of
from sheaf.train.settings import start_of
from sheaf.tune.space import Space
from sheaf.tune.width import narrowed

RATE_FACTOR = 4.0  # how far from the usual learning rate a search without marks looks, both ways
CLOSED = {
    "budget": "trials are compared at equal budgets",
    "held_out": "the held-out records judge all trials, and none may train on them",
    "evaluate_tokens": "all trials are judged on the same tokens",
}
RATE = ("train", "learning_rate")


@dataclass(frozen=True)
class Search:
    """recipe: with the open places, and what a search adds where there are none. usual: with what is usual there.
    on: sources whose held-out records judge; None: all. tokens: of a whole trial, where the recipe's budget is not
    taken. width: of the model that is tried in place of the recipe's."""

    recipe: OpenRecipe
    usual: Recipe
    space: Space
    on: tuple[str, ...] | None
    tokens: str | int | None
    width: int | None

    @property
    def marks(self) -> tuple[Mark, ...]:
        return self.space.marks

    @property
    def measure(self) -> str:
        """Tokens of one tokenizer are compared by their loss, texts in several by their bits."""
        several = self.touches(("prepare", "tokenizer")) or self.touches(("prepare", "template"))
        return "bits_per_byte" if several else "loss"

    @property
    def prepares(self) -> bool:
        """Whether trials have a corpus of their own."""
        return self.touches(("prepare",))

    @property
    def digest(self) -> str:
        """Of all that decides a trial."""
        marks = {mark.name: mark.to_json() | {"usual": mark.usual} for mark in self.marks}
        told = [
            self.usual.model_dump(mode="json", by_alias=True, exclude={"prices"}),
            marks,
            self.on,
            self.tokens,
            self.width,
        ]
        return digest_json(told)

    def touches(self, path: KeyPath) -> bool:
        return any(mark.path[: len(path)] == path for mark in self.marks)

    def trial_recipe(self, values: dict[KeyPath, Any]) -> Recipe:
        """What a trial trains. Raises RecipeError for values that do not go together."""
        recipe = self.recipe.filled(values)
        train = _with_budget(recipe.train, self.tokens)
        # A trial is measured by what judges all; of its own it is evaluated at the end, and what it keeps is to go on.
        train = train.model_copy(update={"keep": 2, "keep_best": False})
        model = self.usual.model
        return recipe.model_copy(update={"name": f"{recipe.name}-tune", "train": train, "model": model})

    def judge_recipe(self, trial: Recipe) -> Recipe:
        """What a trial is measured on: the usual recipe's held-out records, in the trial's tokens and at its length."""
        length = trial.train.sequence_length
        train = self.usual.train.model_copy(
            update={"sequence_length": length, "batch_tokens": max(length, self.usual.train.batch_tokens)}
        )
        tokens = {"tokenizer": trial.prepare.tokenizer, "template": trial.prepare.template}
        prepare = self.usual.prepare.model_copy(update=tokens)
        return self.usual.model_copy(update={"train": train, "prepare": prepare})


def search_of(
    recipe: OpenRecipe, *, on: Sequence[str] = (), tokens: str | int | None = None, width: int | None = None
) -> Search:
    """Raises RecipeError or UsageError for what cannot be searched."""
    usual = recipe.filled()
    names = [source.name for source in usual.sources]
    if odd := [name for name in on if name not in names]:
        raise UsageError(f"there is no source '{odd[0]}' to judge by", fix=f"sources: {', '.join(names)}")
    for mark in recipe.marks:
        if mark.path[0] == "train" and (why := CLOSED.get(str(mark.path[1]))) is not None:
            raise RecipeError(
                f"'{mark.name}' cannot be tuned", where=recipe.tree.place(mark.path), why=why, fix="write one value"
            )
    found = Search(recipe, usual, Space(recipe.marks), tuple(on) or None, tokens, width)
    if tokens is not None:
        parse_tokens(tokens)
    _check_budget(found)
    if found.touches(("mixture",)) and not on:
        raise UsageError(
            "weights of a mixture are searched, and it is not said what for",
            why="by the loss on all sources, more of a source helps on that source itself, noise not excepted",
            fix=f"name the sources whose held-out records are to judge: --on {names[0]}",
        )
    if width is not None and usual.train.rates:
        why = "the rule for another width is written there"
        raise RecipeError("train.rates and --width do not go together", why=why, fix="leave one of them out")
    if width is not None and recipe.marks and not found.touches(RATE):
        raise UsageError(
            "a narrow model is tried for its learning rate, which is not searched",
            fix="mark train.learning_rate with {tune: …}, or leave --width out",
        )
    return found


def with_defaults(search: Search, corpus: CorpusVersion) -> tuple[Search, list[str]]:
    """Where nothing is marked: learning rate, weight decay, tokens of a batch; and lines that say so. And the model
    that is tried, if it is a narrow one."""
    told: list[str] = []
    recipe, usual = search.recipe, search.usual
    if search.width is not None:
        wide = plan_of(usual, corpus).config
        spec = narrowed(usual.model, wide, search.width)  # pyright: ignore[reportArgumentType]
        usual = usual.model_copy(update={"model": spec})
    if not search.marks:
        marks = _default_marks(search, usual, corpus)
        told.append("nothing in the recipe is marked with {tune: …}, so these are searched:")
        told += [f"  {mark.name}: {_said(mark)}" for mark in marks]
        recipe = replace(recipe, marks=marks)
        values = {mark.path: mark.usual for mark in marks}
        usual = recipe.filled(values).model_copy(update={"model": usual.model})
    return replace(search, recipe=recipe, usual=usual, space=Space(recipe.marks)), told


def _default_marks(search: Search, usual: Recipe, corpus: CorpusVersion) -> tuple[Mark, ...]:
    train, start = usual.train, start_of(usual)
    optimizer, _ = choose(train.optimizer, start)
    hidden = plan_of(usual, corpus).config.hidden_parameters()
    rate = train.learning_rate or default_rate(optimizer, hidden, start)[0]
    decays = dict.fromkeys((train.weight_decay, 0.0, 0.1, 0.3))
    marks = [
        Mark(RATE, low=rate / RATE_FACTOR, high=rate * RATE_FACTOR, log=True, first=rate),
        Mark(("train", "weight_decay"), choices=tuple(decays)),
    ]
    batch, length = train.batch_tokens, train.sequence_length
    batches = dict.fromkeys((batch, max(length, batch // 2), 2 * batch))
    if len(batches) > 1 and (train.budget.steps is None or search.tokens is not None):
        marks.append(Mark(("train", "batch_tokens"), choices=tuple(batches)))
    return tuple(marks)


def _check_budget(search: Search) -> None:
    if search.tokens is not None:
        return
    budget = search.usual.train.budget
    fix = "give --tokens, the tokens of a whole trial"
    if budget.hours is not None:
        why = "how many steps fit into hours is measured anew by each run, and several run at a time"
        raise RecipeError("trials need a budget that is the same for all", where="train.budget.hours", why=why, fix=fix)
    if budget.steps is not None and search.touches(("train", "batch_tokens")):
        why = "as many steps of a larger batch see more tokens"
        raise RecipeError("trials need a budget that is the same for all", where="train.budget.steps", why=why, fix=fix)


def _with_budget(train: Train, tokens: str | int | None) -> Train:
    return train if tokens is None else train.model_copy(update={"budget": Budget(tokens=tokens)})


def _said(mark: Mark) -> str:
    if mark.choices:
        return f"one of {', '.join(f'{value:g}' for value in mark.choices)}"
    return f"{mark.low:.3g} to {mark.high:.3g}, on a logarithmic scale; the usual one is {mark.usual:.3g}"
