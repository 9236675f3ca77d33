"""Which values the next trial takes: all combinations where they are few, else what optuna's TPE proposes.

A pure function of the trials so far and the next one's number: a search that was killed and goes on proposes what an
undisturbed one does. So the sampler is made anew for each trial, from a seed of its own, over a study in memory that
holds the trials so far (Bergstra et al. 2011, NeurIPS, section 4; trials that are not finished count as bad ones).
Cost: milliseconds a trial.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sheaf.errors import MissingExtra
from sheaf.recipe_marks import Mark
from sheaf.recipe_yaml import KeyPath

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import FrozenTrial, create_trial
except ImportError as error:
    raise MissingExtra("tune", "`sheaf tune`") from error

DRAWN_FIRST = 8  # trials before the model of the past says anything
ATTEMPTS = 100  # draws for a combination that was not tried yet

Params = dict[str, Any]  # by the mark's name; what is no number and no word is its JSON text


@dataclass(frozen=True)
class Space:
    """The open places of a search."""

    marks: tuple[Mark, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {mark.name: _distribution(mark) for mark in self.marks}

    @property
    def size(self) -> int | None:
        """Combinations; None where one place takes any number of a range."""
        if not all(mark.choices for mark in self.marks):
            return None
        return math.prod(len(mark.choices) for mark in self.marks)

    @property
    def usual(self) -> Params:
        return {mark.name: _label(mark.usual) for mark in self.marks}

    def values(self, params: Mapping[str, Any]) -> dict[KeyPath, Any]:
        """What stands in the recipe for these."""
        return {mark.path: _value(mark, params[mark.name]) for mark in self.marks}

    def propose(self, past: Sequence[FrozenTrial], *, whole: bool, seed: int) -> Params | None:
        """What trial number len(past) takes; None if all has been tried. whole: go through all combinations."""
        number = len(past)
        if number == 0:
            return self.usual
        tried = [trial.params for trial in past]
        if whole:
            return next((params for params in self._combinations() if params not in tried), None)
        for attempt in range(ATTEMPTS):
            params = self._drawn(past, seed=(seed * 1_000_003 + number * ATTEMPTS + attempt) % 2**32)
            if params not in tried:
                return params
        return None

    def _combinations(self) -> Sequence[Params]:
        every = itertools.product(*(mark.choices for mark in self.marks))
        return [{m.name: _label(v) for m, v in zip(self.marks, values, strict=True)} for values in every]

    def _drawn(self, past: Sequence[FrozenTrial], seed: int) -> Params:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=DRAWN_FIRST, multivariate=True, constant_liar=True, seed=seed
            )
            study = optuna.create_study(sampler=sampler)
            study.add_trials(past)
            return study.ask(self.distributions).params


def as_running(params: Params, space: Space) -> FrozenTrial:
    return create_trial(state=optuna.trial.TrialState.RUNNING, params=params, distributions=space.distributions)


def _distribution(mark: Mark) -> BaseDistribution:
    if mark.choices:
        return CategoricalDistribution([_label(value) for value in mark.choices])
    if isinstance(mark.low, int) and isinstance(mark.high, int):
        return IntDistribution(mark.low, mark.high, log=mark.log)
    return FloatDistribution(mark.low, mark.high, log=mark.log)


def _label(value: Any) -> Any:
    plain = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    return value if plain else json.dumps(value)


def _value(mark: Mark, label: Any) -> Any:
    """Of a range four digits: nobody wants to copy seventeen."""
    if isinstance(label, float) and not mark.choices:
        return min(max(float(f"{label:.4g}"), mark.low), mark.high)
    return next((value for value in mark.choices if _label(value) == label), label)
