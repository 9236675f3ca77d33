"""The trials of a search and what came of them: optuna's study, in a SQLite file of the workspace.

    tune/<name>-<digest>/  study.db   of each trial its values, the held-out loss at each rung, its run, why it failed
                           judges/    what all are measured on: a recipe and a version of the corpus
                           .lock      held by the process that searches

The digest is of all that decides a trial: the recipe, the open places, the seed. So the same command finds its search
again. SQLite commits each word, so a process that is killed has lost none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL

from sheaf.tune.space import Params, Space

STUDY = "study.db"
BRACKET, RUN, CORPUS, JUDGE, REASON = "bracket", "run", "corpus", "judge", "reason"


@dataclass(frozen=True)
class Trial:
    """A trial as the study knows it. losses: by rung, in percent of the run. run: the name of its run. dropped: a
    rung's worse half. reason: why it failed, or nothing."""

    number: int
    params: Params
    bracket: int
    losses: dict[int, float]
    run: str | None
    corpus: str | None
    judge: str | None
    finished: bool
    dropped: bool
    reason: str

    @property
    def failed(self) -> bool:
        return bool(self.reason)

    @property
    def reached(self) -> int:
        """The last rung that it was measured at, in percent; 0 before."""
        return max(self.losses, default=0)


class Study:
    """The study of a folder, opened or made."""

    def __init__(self, folder: Path, space: Space, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        url = URL.create("sqlite", database=str(folder.resolve() / STUDY)).render_as_string()
        self.folder, self.space, self.seed = folder, space, seed
        self._storage = optuna.storages.RDBStorage(url)
        self._study = optuna.create_study(storage=self._storage, study_name=folder.name, load_if_exists=True)
        self._id = self._storage.get_study_id_from_name(folder.name)

    def trials(self, bracket: int | None = None) -> list[Trial]:
        found = [_trial(one) for one in self._frozen()]
        return [one for one in found if bracket in (None, one.bracket)]

    def begin(self, bracket: int, *, whole: bool) -> Trial | None:
        """Note the next trial; None if there are no values left to try."""
        params = self.space.propose(self._frozen(), whole=whole, seed=self.seed)
        if params is None:
            return None
        if not self._study.get_trials(
            deepcopy=False, states=(TrialState.WAITING,)
        ):  # of a process that was killed here
            self._study.enqueue_trial(params, user_attrs={BRACKET: bracket})
        number = self._study.ask(self.space.distributions).number
        return self.trials()[number]

    def note(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def measured(self, number: int, percent: int, loss: float) -> None:
        optuna.trial.Trial(self._study, self._trial_id(number)).report(loss, percent)

    def drop(self, number: int) -> None:
        """Of the worse half: its value is the last one measured."""
        self._study.tell(number, state=TrialState.PRUNED)

    def complete(self, number: int, loss: float) -> None:
        self._study.tell(number, loss)

    def fail(self, number: int, reason: str) -> None:
        self.note(number, REASON, reason)
        self._study.tell(number, state=TrialState.FAIL)

    def size_of(self, bracket: int, wanted: int) -> int:
        """How many trials a bracket has: as wanted when it was opened."""
        sizes: dict[str, int] = self._study.user_attrs
        if str(bracket) not in sizes:
            self._study.set_user_attr(str(bracket), wanted)
        return int(self._study.user_attrs[str(bracket)])

    def remembered(self, key: str, wanted: Any) -> Any:
        """What was decided when the search began."""
        if key not in self._study.user_attrs:
            self._study.set_user_attr(key, wanted)
        return self._study.user_attrs[key]

    def _frozen(self) -> Sequence[FrozenTrial]:
        asked = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return self._study.get_trials(deepcopy=False, states=asked)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _trial(one: FrozenTrial) -> Trial:
    said = one.user_attrs
    return Trial(
        number=one.number,
        params=one.params,
        bracket=int(said[BRACKET]),
        losses=one.intermediate_values,
        run=said.get(RUN),
        corpus=said.get(CORPUS),
        judge=said.get(JUDGE),
        finished=one.state.is_finished(),
        dropped=one.state == TrialState.PRUNED,
        reason=str(said.get(REASON, "")),
    )
