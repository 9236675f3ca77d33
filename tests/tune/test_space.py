"""Which values a trial takes: a function of the trials before it, and never the same twice."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from sheaf.recipe_marks import Mark
from sheaf.tune.space import Space

RATE = Mark(("train", "learning_rate"), low=1e-4, high=1e-2, log=True, first=1e-3)
BATCH = Mark(("train", "batch_tokens"), choices=(1024, 2048, 4096))
NEAR = Mark(("prepare", "dedup", "near"), choices=(None, 0.8))


def trial(space: Space, params: dict[str, Any], state: TrialState, **more: Any) -> FrozenTrial:
    return create_trial(state=state, params=params, distributions=space.distributions, **more)


def proposed(space: Space, trials: int, *, whole: bool = False, seed: int = 3) -> list[dict[str, Any]]:
    """As a bracket of trials, none of them measured yet."""
    past: list[FrozenTrial] = []
    while len(past) < trials and (params := space.propose(past, whole=whole, seed=seed)) is not None:
        past.append(trial(space, params, TrialState.RUNNING))
    return [one.params for one in past]


def test_all_combinations_are_tried_the_usual_one_first() -> None:
    space = Space((BATCH, NEAR))
    found = proposed(space, 99, whole=True)
    assert space.values(found[0]) == {BATCH.path: 1024, NEAR.path: None}
    assert len(found) == space.size == 6
    assert all(found.count(one) == 1 for one in found)


def test_what_is_proposed_depends_on_the_trials_before_and_on_nothing_else() -> None:
    space = Space((RATE, NEAR))
    first = proposed(space, 6)
    assert first[0]["train.learning_rate"] == 1e-3
    assert proposed(space, 6) == first
    assert proposed(space, 6, seed=4) != first
    past = [trial(space, params, TrialState.RUNNING) for params in first[:4]]
    assert space.propose(past, whole=False, seed=3) == first[4]  # killed after the fourth, and begun again


def test_no_values_are_tried_twice_and_a_space_may_be_used_up() -> None:
    space = Space((BATCH,))
    found = proposed(space, 9)
    assert sorted(one["train.batch_tokens"] for one in found) == [1024, 2048, 4096]


def test_what_did_well_draws_the_next_trials_to_it() -> None:
    space = Space((RATE,))
    past: list[FrozenTrial] = []
    for number in range(24):
        params = space.propose(past, whole=False, seed=1)
        assert params is not None
        off = abs(optuna.trial.FixedTrial(params).suggest_float("train.learning_rate", 1e-4, 1e-2, log=True) - 7e-3)
        past.append(trial(space, params, TrialState.COMPLETE, value=off))
        assert 1e-4 <= params["train.learning_rate"] <= 1e-2, number
    rates = [one.params["train.learning_rate"] for one in past]
    assert sum(rate > 3e-3 for rate in rates[12:]) > sum(rate > 3e-3 for rate in rates[:12])
