"""`sheaf tune`: trials in brackets, halved at each rung, until all are made or time is up.

A bracket's trials all train to a quarter of their run and are measured on the same held-out records; the better half
goes on to the half of it, and the better half of these to the end (successive halving: Jamieson and Talwalkar 2016,
arXiv 1502.07943). The whole bracket is waited for at a rung, unlike in the asynchronous kind: so it does not matter for
the result how many run at a time, which is done first, or where a search was killed. A trial that is dropped stays as a
run that can go on. Where all combinations are tried they are one bracket; else brackets have eight trials, and what
was learned from one decides what the next one tries. Cost: of eight trials, that of four whole runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from orjson import loads as from_json

from sheaf import allowance
from sheaf.console import Console, Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.errors import DataRefused, Interrupted, OutOfMemory, RecipeError, SheafError, TrainingFailed, UsageError
from sheaf.files import digest_json, write_json
from sheaf.parallel.layout import ranks_of
from sheaf.prepare.pipeline import prepare, refuse_deferred
from sheaf.processes import StopSignals
from sheaf.recipe import Recipe
from sheaf.recipe_file import OpenRecipe
from sheaf.train.launch import train
from sheaf.train.run import Run, locked
from sheaf.tune.crew import Crew, Job, Stopped
from sheaf.tune.result import told, write_recipe
from sheaf.tune.setup import Search, search_of, with_defaults
from sheaf.tune.study import CORPUS, JUDGE, RUN, Study, Trial
from sheaf.tune.trial import judged

RUNGS = (25, 50, 100)  # percent of a run
BRACKET = 8
USUAL_TRIALS = 8  # of an open search, where the command does not say how many
LARGEST_GRID = 16  # so many combinations are all tried unless the command says how many trials there are
USUAL_JOBS = 4  # at most, unless the command says so: each has a model in memory
# What says something about a trial's values and nothing about this machine or the other trials.
OF_VALUES = (TrainingFailed, OutOfMemory, RecipeError, DataRefused)


@dataclass(frozen=True)
class Limits:
    """trials: in all, those of earlier calls included. hours: of this call. jobs: trials at a time."""

    trials: int | None = None
    hours: float | None = None
    jobs: int | None = None


def tune(
    recipe: OpenRecipe,
    limits: Limits,
    *,
    on: Sequence[str] = (),
    tokens: str | int | None = None,
    width: int | None = None,
    out: Path | None = None,
    workers: int | None = None,
    console: Console,
) -> dict[str, Any]:
    """Search, or go on with the search of the same recipe, and return what `sheaf tune --json` prints (`result.told`).
    out: where to write the whole recipe with what was found.

    Raises Interrupted after a signal; what is done is kept, and the same call goes on. Raises TrainingFailed if no
    trial could be measured.
    """
    ends = None if limits.hours is None else time.monotonic() + 3600 * limits.hours
    search = search_of(recipe, on=on, tokens=tokens, width=width)
    corpus = _prepared(search.usual, workers, console)
    wide = search.usual
    search, lines = with_defaults(search, corpus)
    for line in lines:
        console.note(line)
    folder = Workspace.at(search.usual.workspace).runs.parent / "tune" / f"{search.usual.name}-{search.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "makes this search"):
        work = _Work(search, folder, corpus, limits, ends, workers, console)
        stopped = work.all_brackets()
        data, values = told(search, work.study.trials(), folder, wide=wide, corpus=corpus, hours_up=stopped)
    if search.prepares:  # so that the newest version is not that of some other trial
        _prepared(search.recipe.filled(values), workers, console)
    if out is not None:
        write_recipe(out, search.recipe, data, values)
    return data | {"out": out and str(out)}


class _Work:
    """A search under way."""

    def __init__(
        self,
        search: Search,
        folder: Path,
        corpus: CorpusVersion,
        limits: Limits,
        ends: float | None,
        workers: int | None,
        console: Console,
    ) -> None:
        self.search, self.folder, self.corpus, self.console = search, folder, corpus, console
        self.ends, self.workers = ends, workers
        self.study = Study(folder, search.space, search.usual.seed)
        size = search.space.size
        self.trials = limits.trials or (size if size is not None and size <= LARGEST_GRID else USUAL_TRIALS)
        self.whole = size is not None and self.trials >= size
        layout = search.usual.train.layout
        ranks = 1 if layout == "auto" else ranks_of(layout)
        usual = 1 if torch.cuda.is_available() else max(1, min(USUAL_JOBS, allowance.cores() // ranks))
        self.jobs = limits.jobs or usual
        # Threads change roundings, so a search that goes on keeps what it began with.
        self.threads = int(self.study.remembered("threads", max(1, allowance.cores() // (self.jobs * ranks))))
        self._corpora: dict[str, str] = {digest_json(search.usual.prepare.model_dump(mode="json")): corpus.digest}

    def all_brackets(self) -> bool:
        """Make all trials. Returns whether time was up first."""
        made = len(self.study.trials())
        how = "all combinations" if self.whole else "the first as the recipe is, the others as optuna proposes"
        self.console.note(
            f"{self.trials} trials ({how}), {self.jobs} at a time with {self.threads} threads each; {self.folder}"
            + (f"; {made} are there already" if made else "")
        )
        with StopSignals(patient=False) as signals, Crew(self.folder, self.jobs, self.threads, self.ends) as crew:
            try:
                bracket = 0
                while self._bracket(bracket, crew, signals):
                    bracket += 1
            except Stopped as stopped:
                if not stopped.number:
                    self.console.note("time is up; the same command goes on")
                    return True
                raise self._interrupted(stopped.number) from None
        return False

    def _bracket(self, number: int, crew: Crew, signals: StopSignals) -> bool:
        """All of one bracket that is not done yet. Returns whether there was one to do."""
        before = sum(trial.bracket < number for trial in self.study.trials())
        there = len(self.study.trials(number))
        wanted = min(self.trials if self.whole else BRACKET, self.trials - before)
        if wanted <= 0 and not there:
            return False
        wanted = self.study.size_of(number, max(wanted, there))
        while len(self.study.trials(number)) < wanted:
            if self.study.begin(number, whole=self.whole) is None:
                break
        if not self.study.trials(number):
            return False
        alive = [trial.number for trial in self.study.trials(number) if not trial.failed]
        for rung in RUNGS:
            self._to_rung(number, rung, alive, crew, signals)
            measured = {t.number: t.losses[rung] for t in self.study.trials(number) if rung in t.losses}
            alive = better_half(measured) if rung != RUNGS[-1] else list(measured)
            self._finish(number, rung, measured, alive)
        return True

    def _to_rung(self, bracket: int, rung: int, alive: Sequence[int], crew: Crew, signals: StopSignals) -> None:
        waiting = [t for t in self.study.trials(bracket) if t.number in alive and rung not in t.losses and not t.failed]
        if not waiting:
            return
        jobs = [job for trial in waiting if (job := self._job(trial, rung)) is not None]
        title = f"bracket {bracket + 1} to {rung}%"
        with self.console.stage(title, len(jobs), "trials") as advance:
            for trial, error in crew.run(jobs, signals):
                advance(1)
                if error is None:
                    self._measured(trial, rung)
                elif isinstance(error, OF_VALUES):
                    self._failed(trial, error)
                else:
                    raise error

    def _job(self, trial: Trial, rung: int) -> Job | None:
        """What a trial's process is to do; None if the trial cannot be made, which is noted."""
        try:
            run, judge = self._run_of(trial)
        except (*OF_VALUES, UsageError) as error:  # a shape or a layout that cannot be
            self._failed(trial.number, error)
            return None
        steps = Run.open(run).settings.steps or 0
        until = max(1, math.ceil(steps * rung / 100))
        order = {"run": str(run), "until": until, "percent": rung, "judge": str(self.folder / judge)}
        return Job(trial.number, order)

    def _run_of(self, trial: Trial) -> tuple[Path, str]:
        """The run of a trial and what judges it, made before its first rung."""
        runs = Workspace.at(self.search.usual.workspace).runs
        if trial.run is not None and trial.judge is not None:
            return runs / trial.run, trial.judge
        recipe = self.search.trial_recipe(self.search.space.values(trial.params))
        judge = self._judge_of(recipe)
        corpus = self._corpus_of(recipe)
        run = Run.open(Path(train(recipe, corpus, start_only=True, console=Silent())["run"]))
        settings = dict(run.record["settings"]) | {"threads": self.threads}
        if recipe.train.evaluate_every is None:
            settings["evaluate_every"] = settings["steps"]
        run.updated(settings=settings)
        self.study.note(trial.number, CORPUS, corpus.digest)
        self.study.note(trial.number, JUDGE, judge)
        self.study.note(trial.number, RUN, run.folder.name)
        return run.folder, judge

    def _corpus_of(self, recipe: Recipe) -> CorpusVersion:
        """The version that a recipe's thresholds select; what was read and scored is not done again."""
        key = digest_json(recipe.prepare.model_dump(mode="json"))
        if key not in self._corpora:
            self._corpora[key] = _prepared(recipe, self.workers, self.console).digest
        return CorpusVersion.open(recipe.workspace, self._corpora[key])

    def _judge_of(self, recipe: Recipe) -> str:
        judge = self.search.judge_recipe(recipe)
        said = {
            "recipe": from_json(judge.model_dump_json(by_alias=True)),
            "corpus": self._corpus_of(judge).digest,
            "on": self.search.on,
        }
        name = f"judges/{digest_json(said)[:16]}.json"
        (self.folder / "judges").mkdir(exist_ok=True)
        write_json(self.folder / name, said)
        return name

    def _measured(self, number: int, rung: int) -> None:
        trial = self.study.trials()[number]
        figures = judged(Workspace.at(self.search.usual.workspace).runs / (trial.run or ""))[rung]
        value = figures[self.search.measure]
        if value is None or not math.isfinite(value):
            self._failed(number, TrainingFailed(f"its {self.search.measure} is {value}"))
            return
        self.study.measured(number, rung, value)
        took = ", ".join(f"{name}={said}" for name, said in trial.params.items())
        self.console.note(f"trial {number}: {value:.4f} after {figures['step']:,} steps ({rung}%); {took}")

    def _failed(self, number: int, error: SheafError) -> None:
        reason = ": ".join(part for part in (error.what, error.why) if part)
        self.study.fail(number, reason)
        self.console.note(f"trial {number} failed: {reason}")

    def _finish(self, bracket: int, rung: int, measured: dict[int, float], alive: Sequence[int]) -> None:
        """Tell the study of those that end here."""
        for trial in self.study.trials(bracket):
            if trial.finished or trial.number not in measured:
                continue
            if trial.number not in alive:
                self.study.drop(trial.number)
            elif rung == RUNGS[-1]:
                self.study.complete(trial.number, measured[trial.number])

    def _interrupted(self, number: int) -> Interrupted:
        error = Interrupted(
            "stopped; what the trials have done is kept", where=str(self.folder), fix="the same command goes on"
        )
        error.exit_code = 128 + number
        return error


def better_half(losses: dict[int, float]) -> list[int]:
    """The trials with the lower losses, one more than half of an odd number; of equal ones the earlier."""
    ranked = sorted(losses, key=lambda number: (losses[number], number))
    return ranked[: math.ceil(len(ranked) / 2)]


def _prepared(recipe: Recipe, workers: int | None, console: Console) -> CorpusVersion:
    found = prepare(recipe, workers=workers, console=console)
    refuse_deferred(found)
    return CorpusVersion.open(recipe.workspace, found["corpus"])
