"""Start a run, or go on with one: decide what the recipe leaves open, then train here or on several ranks."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil
import torch

from sheaf import errors
from sheaf.console import Console
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import EnvironmentProblem, Interrupted, SheafError, UsageError
from sheaf.files import folder_of, write_file
from sheaf.model.config import ModelConfig
from sheaf.model.memory import keep_memory
from sheaf.parallel.launch import Ended, run_ranks
from sheaf.parallel.layout import Facts, check_layout, choose, of_ranks, ranks_of
from sheaf.parallel.ranks import alone, available_cores, threads_for
from sheaf.recipe import Layout, Recipe
from sheaf.recipe_file import dump
from sheaf.train.checkpoint import newest_valid
from sheaf.train.curriculum import changed
from sheaf.train.notes import Follower, NotesFile
from sheaf.train.run import Run, claim_folder, locked, start_run
from sheaf.train.settings import Settings, attention_span, decide
from sheaf.train.setup import config_of, exact, hidden_parameters, order_of, placed
from sheaf.train.trainer import interrupted, train_run


def train(recipe: Recipe, corpus: CorpusVersion, *, nproc: int | None = None, console: Console) -> dict[str, Any]:
    """Start a new run and train it to its end. nproc: ranks on this machine (None: as many as the layout has, or one).

    Returns {"run", "steps", "loss", "validation_loss", "tokens_per_second", "peak_memory_bytes", "checkpoint", …}.
    Raises RecipeError or UsageError before a folder is made if the run cannot be; see `trainer.train_run` for the rest.
    """
    recipe = placed(recipe, corpus)
    order = order_of(recipe, corpus, "train")
    held_out = order_of(recipe, corpus, "held_out")  # packed once here, not by every rank
    config = config_of(recipe, corpus)
    asked = recipe.train.layout
    ranks = nproc or (1 if asked == "auto" else ranks_of(asked))
    settings, reasons = decide(
        recipe,
        order,
        flops_per_token=config.flops_per_token(attention_span(order)),
        hidden_parameters=hidden_parameters(config),
        ranks=ranks,
        threads=threads_for(1),
        gpu=torch.cuda.is_available(),
    )
    layout, why = _layout(recipe, nproc, facts_of(recipe, config, settings, ranks))
    reasons += why
    folder = new_run_folder(recipe, corpus.workspace.runs)
    with locked(folder):
        write_file(folder / "recipe.yaml", dump(recipe).encode())
        run = start_run(folder, recipe, corpus, settings, layout, order.state(0))
        notes = NotesFile(folder, console)
        notes.note(f"run {folder}: {config.parameters():,} parameters, {ranks} {'rank' if ranks == 1 else 'ranks'}")
        if not held_out.steps:
            reasons.append(f"no validation: train.held_out is {recipe.train.held_out:g}, and holds no document back")
        for reason in reasons:
            notes.note(reason)
        return _go(run, ranks, console)


def resume(
    run: Path,
    *,
    nproc: int | None = None,
    layout: Layout | None = None,
    weights: Mapping[str, float] | None = None,
    console: Console,
) -> dict[str, Any]:
    """Go on with a run from its newest valid checkpoint, spread as it was, or over `nproc` ranks, or as `layout` says.

    weights: of sources, from that checkpoint's step on. Raises UsageError if the run is finished or is being trained by
    another process.
    """
    folder = Run.open(run).folder  # a folder that is no run is refused before a lock is put there
    with locked(folder):
        opened = Run.open(folder)
        if opened.result is not None:
            raise UsageError(
                "the run is finished; there is nothing to resume",
                where=str(folder),
                why=f"it made all its {opened.result['steps']:,} steps",
                fix="`sheaf train` starts another one; a larger train.budget makes it longer",
            )
        recipe = opened.recipe
        if layout is not None:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"layout": layout})})
        if nproc is not None or layout is not None:
            ranks = nproc or ranks_of(layout or opened.layout)
            config = config_of(recipe, opened.corpus())
            chosen, _ = _layout(recipe, nproc, facts_of(recipe, config, opened.settings, ranks))
            opened = opened.updated(ranks=ranks_of(chosen), layout=chosen.model_dump())
        if weights:
            opened = _with_weights(opened, weights, console)
        return _go(opened, opened.ranks, console)


def _with_weights(run: Run, weights: Mapping[str, float], console: Console) -> Run:
    """The run with other weights from its next step on, written down."""
    checkpoint = newest_valid(run.folder, console.note)
    step = 0 if checkpoint is None else checkpoint.step
    changes = changed(run.record, run.recipe, step, weights)
    other = Run(run.folder, {**run.record, **changes})
    order = order_of(other.recipe, other.corpus(), "train")
    if order.steps is not None and order.steps < (run.settings.steps or 0):
        raise UsageError(
            "with these weights the run would end before its budget",
            where=str(run.folder),
            why=f"max_epochs of all sources with a weight are used up after {order.steps:,} of its steps",
            fix="leave weight to a source that has more",
        )
    write_file(run.folder / "recipe.yaml", dump(other.recipe).encode())
    shares = ", ".join(f"{name} {100 * share:.1f}%" for name, share in order.weights(step).items())
    NotesFile(run.folder, console).note(f"from step {step:,} on, shares of the tokens: {shares}")
    return run.updated(**changes)


def new_run_folder(recipe: Recipe, runs: Path | None = None) -> Path:
    """Claim workspace/runs/<name>-001, or the next free number."""
    return claim_folder(runs or folder_of(recipe.workspace) / "runs", recipe.name)


def _layout(recipe: Recipe, nproc: int | None, facts: Facts) -> tuple[Layout, list[str]]:
    """The layout of a run, and why it has it. Raises UsageError if the recipe's cannot be."""
    asked = recipe.train.layout
    if asked == "auto":
        return choose(nproc or 1, facts)
    layout = of_ranks(asked, nproc)
    check_layout(layout, facts)
    return layout, []


def facts_of(recipe: Recipe, config: ModelConfig, settings: Settings, ranks: int) -> Facts:
    """What the layout of so many ranks on this machine depends on."""
    gpu = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else psutil.virtual_memory().total / ranks
    return Facts(
        config=config,
        sequence_length=recipe.train.sequence_length,
        batch=settings.batch,
        micro_tokens=settings.micro_tokens,
        compile=settings.compile,
        memory_bytes=memory,
        host_ranks=ranks,
    )


def _go(run: Run, nproc: int, console: Console) -> dict[str, Any]:
    """Train a run that this process holds."""
    run = _train_here(run, console) if nproc == 1 else _train_on_ranks(run, nproc, console)
    if run.result is None:
        raise AssertionError("a run that ended well has a result")
    return run.result


def _train_here(run: Run, console: Console) -> Run:
    keep_memory()
    threads = run.settings.threads
    notes = NotesFile(run.folder, console)
    if threads > available_cores():
        notes.note(f"{threads} threads on {available_cores()} cores: as many as when the run began, for the same bits")
    with exact(threads):
        return train_run(run, alone(), notes)


def _train_on_ranks(run: Run, nproc: int, console: Console) -> Run:
    console.note(f"{nproc} ranks with {threads_for(nproc)} threads each")
    for left in run.folder.glob("failure-*.json"):
        left.unlink()
    with Follower(run.folder, console, run.settings.steps):
        ended = run_ranks("sheaf.train.worker", [str(run.folder)], nproc, run.folder)
    if ended != Ended():
        raise _error_of(run.folder, ended)
    return Run.open(run.folder)


def _error_of(folder: Path, ended: Ended) -> SheafError:
    """What to raise for ranks that did not end well: what one of them raised, if it left word."""
    found = [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("failure-*.json"))]
    found.sort(key=lambda content: content["kind"] == Interrupted.__name__)  # the cause, rather than what followed
    if ended.signal and (not found or found[0]["kind"] == Interrupted.__name__):
        return interrupted(folder, ended.signal)
    for content in found:
        kind = getattr(errors, content["kind"], SheafError)
        error = kind(content["what"], where=content["where"], why=content["why"], fix=content["fix"])
        error.exit_code = content["code"]
        return error
    rank, code = ended.failed or (0, 1)
    how = f"it was killed by {_signal_name(-code)}" if code < 0 else f"it ended with exit code {code}; see its output"
    return EnvironmentProblem(
        f"rank {rank} died, so the run has stopped",
        where=str(folder),
        why=how,
        fix=f"go on from the last checkpoint with: sheaf resume {folder}",
    )


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
