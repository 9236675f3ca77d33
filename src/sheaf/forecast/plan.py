"""`sheaf plan`: what preparing and training a recipe will take, before anything runs. What `--json` prints is said in
`plan`.

The data is a corpus or a survey (`subject.py`), the machine is measured (`here.py`) or looked up (`machines.py`),
memory is counted on the meta device (`memory.py`), time composed by the cost model that `layout: auto` uses too
(`parallel/cost.py`). Cost: the probe's seconds and, where nothing is prepared, those of the survey.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sheaf.console import Console, Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import DataRefused, UsageError
from sheaf.forecast.budget import afforded
from sheaf.forecast.changes import nearest
from sheaf.forecast.layouts import Row, counted, fitting, judged
from sheaf.forecast.machines import accelerator
from sheaf.forecast.scaling import scaling
from sheaf.forecast.subject import Subject, of_corpus, of_survey, ranks_asked
from sheaf.forecast.training import chosen, least, training
from sheaf.forecast.where import Where, here, there
from sheaf.model.config import ModelConfig
from sheaf.recipe import Recipe

Json = dict[str, Any]
SubjectOn = Callable[[int, Recipe], Subject]  # (ranks, the recipe that is planned or a changed one)
LISTED = 64  # layouts that are out, one by one; of more only how many there are for each reason


def plan(
    recipe: Recipe,
    *,
    nproc: int | None = None,
    machine: str | None = None,
    nodes: Sequence[int] = (),
    price: float | None = None,
    budget: str | None = None,
    survey: Callable[[], Json],
    console: Console | None = None,
) -> Json:
    """What `sheaf plan --json` prints. ABOUT is {"value", "error"}: the error is what the value may be off by.

        recipe, prepare   {"from": "corpus" | "survey", "tokens": ABOUT, "samples", …}; of a survey also text_bytes,
                          disk_bytes, memory_bytes, seconds: ABOUT, cost: ABOUT or null
        model             {"parameters", "learning", "hidden_size", "layers", "flops_per_token"}
        machine           {"name", "ranks", "rates", "host_bytes_per_second", …, "source", "probe_seconds"}
        training          {"layout", "fits", "steps": ABOUT, "tokens", "step_seconds", "seconds", "tokens_per_second",
                          "memory_bytes": ABOUT, "memory": {PART: bytes}, "step": {PART: seconds}, "run": {PART:
                          seconds}, "disk_bytes", "cost": ABOUT or null}
        layouts           [{"layout", "fits", "step_seconds", "memory_bytes", "reason"}]: those that fit, fastest first
        changes           where none fits: [words of a command line] after which the most frugal of these layouts would
        rejected          the same of those that do not; of many [{"reason", "layouts", "such_as"}]
        nodes             [{"nodes", "ranks", "layout", "step_seconds", "seconds", "tokens_per_second", "efficiency",
                          "cost", "pays"}]
        budget            null, or what it buys: see `budget.afforded`

    survey: what `scan` says of the sources, asked where nothing is prepared. nproc: ranks. machine: a name of
    `machines.TABLE`, instead of measuring this one. nodes: how many of its hosts, one forecast each. price: of an hour
    of one rank; default: the recipe's. budget: time or money, such as "6 hours", "100 EUR".
    """
    console, price = console or Silent(), recipe.prices.rank_hour if price is None else price
    prepare, subject_on = _data(recipe, survey, gpu=None if machine is None else True)
    if nodes and machine is None:
        raise UsageError("--nodes wants to know what machines they are", fix="give --machine, such as --machine h100")
    if machine is None:
        subject = subject_on(ranks_asked(recipe, nproc), recipe)
        where = here(subject, ranks_asked(recipe, nproc), console)
        return _told(recipe, prepare, subject, subject_on, where, [], price, budget)
    known = accelerator(machine)
    counts = list(nodes) or [1]
    first = nproc or counts[0] * known.per_node
    subject = subject_on(first, recipe)
    scaled = scaling(lambda ranks: subject_on(ranks, recipe), known, counts, price) if nodes else []
    return _told(recipe, prepare, subject, subject_on, there(known, first), scaled, price, budget)


def _data(recipe: Recipe, survey: Callable[[], Json], *, gpu: bool | None) -> tuple[Json, SubjectOn]:
    """What is known of the data, and what makes the subject for so many ranks of it."""
    try:
        corpus = CorpusVersion.open(recipe.workspace)
    except DataRefused:
        return _surveyed(recipe, survey(), gpu=gpu)

    first = of_corpus(recipe, corpus, 1, gpu=gpu)

    def on_corpus(ranks: int, like: Recipe) -> Subject:
        return of_corpus(like, corpus, ranks, gpu=gpu, plan=first.plan if like.model == recipe.model else None)

    return first.corpus, on_corpus


def _surveyed(recipe: Recipe, seen: Json, *, gpu: bool | None) -> tuple[Json, SubjectOn]:
    records = sum(source["records"]["value"] for source in seen["sources"].values())
    known = {**seen["forecast"], "items": seen["sample"]["of_items"], "bytes": seen["sample"]["of_bytes"]}
    price, needed = recipe.prices.worker_hour, known["seconds"]
    hours = known["workers"] * (price or 0.0) / 3600
    cost = None if price is None else {key: hours * needed[key] for key in ("value", "error")}

    first = of_survey(recipe, known, 1, records=records, gpu=gpu)

    def on_survey(ranks: int, like: Recipe) -> Subject:
        plan = first.plan if like.model == recipe.model else None
        return of_survey(like, known, ranks, records=records, gpu=gpu, plan=plan)

    return {"from": "survey", "records": records, **known, **first.corpus, "cost": cost}, on_survey


def _told(
    recipe: Recipe,
    prepare: Json,
    subject: Subject,
    subject_on: SubjectOn,
    where: Where,
    scaled: list[Json],
    price: float | None,
    budget: str | None,
) -> Json:
    good, out = fitting(subject, where.place)
    row = chosen(subject, where, good) or least(out)
    ranks = where.place.ranks
    listed = [one.to_json() for one in out] if len(out) <= LISTED else counted(out)
    config = subject.plan.config
    return {
        "recipe": recipe.name,
        "prepare": prepare,
        "model": {
            "parameters": subject.plan.total,
            "learning": subject.plan.learning,
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "flops_per_token": config.flops_per_token(subject.span, subject.plan.learned),
            "traced": isinstance(config, ModelConfig),
        },
        "machine": where.to_json(),
        "training": training(subject, where, row, price) if row and row.cost else {"fits": False, "ranks": ranks},
        "layouts": [one.to_json() for one in good],
        "changes": [] if row is None or not row.reason else _changes(recipe, subject, subject_on, where, row),
        "rejected": listed,
        "nodes": scaled,
        "budget": None if budget is None else afforded(subject, where, budget, price),
    }


def _changes(recipe: Recipe, subject: Subject, subject_on: SubjectOn, where: Where, row: Row) -> list[str]:
    """Words of a command line after which the layout of this row, which is out, would fit."""
    place = where.place

    def fits(changed: Recipe) -> bool:
        other = subject_on(place.ranks, changed)
        return not judged(other, row.layout, other.facts(place.ranks), place).reason

    return nearest("memory", recipe, subject, fits)
