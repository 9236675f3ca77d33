"""Refuse a run that cannot end well before it begins, and say which changes of the recipe would make it fit.

Only what is sure is refused: memory, where even what the forecast may be off by does not save it, and, if the recipe
lets a run go on with smaller passes, even passes of one sample do not; disk, for the checkpoints that are kept at once;
a budget that asks for more than `max_epochs` of all sources allow; a budget in hours in which not one step fits at a
rate that no machine like this exceeds. Changes are tried, each alone, nearest first, by the same forecast; those that
are told would fit. Cost: a look at some sums, and nothing else, for the many runs that plainly fit; else what the
memory of a few layouts costs (`memory.py`). Nothing is measured: what `sheaf plan` does is not done here again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sheaf.console import duration, size
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import Doomed, UsageError
from sheaf.files import folder_of
from sheaf.forecast.changes import nearest
from sheaf.forecast.layouts import Place, judged
from sheaf.forecast.memory import Memory, least_bytes, memory_of
from sheaf.forecast.run_time import disk_bytes
from sheaf.forecast.subject import Subject, of_corpus, ranks_asked
from sheaf.forecast.training import training
from sheaf.forecast.where import Where, assumed
from sheaf.model.config import ModelConfig
from sheaf.parallel.layout import describe, of_ranks, possible
from sheaf.recipe import Layout, Recipe

Json = dict[str, Any]
PLAINLY = 0.5  # of the room: what a first, generous sum stays below needs no look
HELD = 48  # numbers of a token and hidden unit that a block keeps, at most: what `model/activations.py` counts is less
CORE_LIMIT, GPU_LIMIT = 4e12, 2.5e15  # FLOP/s that no core, and no GPU of today, exceeds in bf16


def forecast_of_run(recipe: Recipe, corpus: CorpusVersion, nproc: int | None) -> Json | None:
    """The forecast of a run that is about to start on this machine's ranks, without measuring. Raises Doomed if it
    cannot end well; None for a layout that cannot be, which the run itself refuses with its reasons."""
    ranks = ranks_asked(recipe, nproc)
    subject, where = of_corpus(recipe, corpus, ranks), assumed(ranks)
    try:
        layouts = _layouts(subject, where)
    except UsageError:
        return None
    if problem := _problem(subject, where, layouts):
        what, why = problem
        found = nearest(what, recipe, subject, lambda changed: _fits(changed, corpus, nproc, recipe, subject))
        fix = "; or ".join(found) if found else "a smaller model, or a larger machine"
        raise Doomed(
            f"this run could not be finished: {what}", where=str(folder_of(recipe.workspace)), why=why, fix=fix
        )
    facts = subject.facts(ranks)
    return training(subject, where, judged(subject, layouts[0], facts, where.place))


def _layouts(subject: Subject, where: Where) -> list[Layout]:
    """Those that the run may have: the recipe's, or all that can be; the plainest first."""
    asked, ranks = subject.recipe.train.layout, where.place.ranks
    if asked != "auto":
        return [of_ranks(asked, ranks)]
    found = possible(ranks, subject.facts(ranks))
    if not found:
        raise UsageError("no layout can be had")
    return sorted(found, key=lambda one: (one.pipeline, one.tensor, one.context, one.shard))


def _problem(subject: Subject, where: Where, layouts: list[Layout]) -> tuple[str, str] | None:
    """(what, why) of the first reason why a run cannot end well; None if there is none for sure."""
    return _epochs(subject) or _hours(subject, where) or _disk(subject) or _memory(subject, where.place, layouts)


def _epochs(subject: Subject) -> tuple[str, str] | None:
    asked, most = subject.asked, subject.most
    if asked is None or most is None or asked <= most + 1:  # both are rounded to whole steps
        return None
    return "epochs", f"its budget asks for {asked:,} steps, max_epochs of all sources is used up after {most:,}"


def _hours(subject: Subject, where: Where) -> tuple[str, str] | None:
    hours = subject.recipe.train.budget.hours
    if hours is None:
        return None
    place = where.place
    limit = GPU_LIMIT if place.gpu else CORE_LIMIT * torch.get_num_threads() / place.ranks
    flops = subject.plan.config.flops_per_token(subject.span, subject.plan.learned) * subject.positions
    seconds = flops / (limit * place.ranks)
    if seconds <= 3600 * hours:
        return None
    return "hours", f"one step takes more than {duration(seconds)}, its budget is {duration(3600 * hours)}"


def _disk(subject: Subject) -> tuple[str, str] | None:
    folder = folder_of(subject.recipe.workspace)
    needed, free = disk_bytes(subject), shutil.disk_usage(folder if folder.exists() else Path.cwd()).free
    if needed <= free:
        return None
    keep = subject.recipe.train.keep
    return "disk", f"{keep} checkpoints and the newest, {size(needed)}, are kept at once, {size(free)} are free"


def _memory(subject: Subject, place: Place, layouts: list[Layout]) -> tuple[str, str] | None:
    tried: list[tuple[float, Layout, Memory]] = []
    if not isinstance(subject.plan.config, ModelConfig):
        return None
    for layout in layouts:
        if _plainly_fits(subject, place, layout):
            return None
        memory = memory_of(_smallest(subject), layout, place.room, gpu=place.gpu)
        if memory is None or not memory.surely_not:
            return None
        tried.append((memory.peak, layout, memory))
    peak, layout, memory = min(tried, key=lambda one: one[0])
    parts = ", ".join(f"{name} {size(part)}" for name, part in memory.parts.items() if part > 0.02 * peak)
    passes = "passes of one sample" if subject.recipe.train.out_of_memory == "shrink" else "its passes"
    return "memory", f"with {passes} a rank of {describe(layout)} needs {size(peak)} ({parts}), has {size(place.room)}"


def _smallest(subject: Subject) -> Subject:
    """The run as it would be after it has run out of memory as often as it may."""
    if subject.recipe.train.out_of_memory == "stop":
        return subject
    settings = replace(subject.settings, micro_tokens=subject.recipe.train.sequence_length)
    return replace(subject, settings=settings)


def _plainly_fits(subject: Subject, place: Place, layout: Layout) -> bool:
    facts, config = subject.facts(place.ranks), subject.plan.config
    tokens = max(subject.settings.micro_tokens, facts.sequence_length)
    held = HELD * tokens * config.hidden_size * config.num_hidden_layers / (layout.tensor * layout.pipeline)
    logits = (16 * config.hidden_size + 2048 * 8) * config.vocab_size
    return 2 * least_bytes(layout, facts) + 4 * held + logits + 1e9 < PLAINLY * place.room


def _fits(recipe: Recipe, corpus: CorpusVersion, nproc: int | None, first: Recipe, known: Subject) -> bool:
    """first, known: the recipe before a change, whose model may be this one's too."""
    ranks = ranks_asked(recipe, nproc)
    plan = known.plan if recipe.model == first.model else None
    subject, where = of_corpus(recipe, corpus, ranks, plan=plan), assumed(ranks)
    return _problem(subject, where, _layouts(subject, where)) is None
