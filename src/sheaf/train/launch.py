"""Start a run, or go on with one: decide what the recipe leaves open, then train here or on several ranks."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

import orjson
import torch

from sheaf import errors
from sheaf.console import Console
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import EnvironmentProblem, Interrupted, SheafError, UsageError
from sheaf.files import folder_of, write_file
from sheaf.model.config import ModelConfig
from sheaf.model.memory import keep_memory
from sheaf.order.balance import check_ranks
from sheaf.parallel.launch import Ended, run_ranks
from sheaf.parallel.ranks import alone, available_cores, threads_for
from sheaf.recipe import Layout, Recipe
from sheaf.recipe_file import dump
from sheaf.train.notes import Follower, NotesFile
from sheaf.train.run import Run, claim_folder, locked, start_run
from sheaf.train.settings import attention_span, decide
from sheaf.train.setup import check_parameters, config_of, exact, hidden_parameters, order_of
from sheaf.train.trainer import interrupted, train_run


def train(recipe: Recipe, corpus: CorpusVersion, *, nproc: int = 1, console: Console) -> dict[str, Any]:
    """Start a new run and train it to its end. nproc: data-parallel ranks on this machine.

    Returns {"run", "steps", "loss", "validation_loss", "tokens_per_second", "peak_memory_bytes", "checkpoint", …}.
    Raises RecipeError or UsageError before a folder is made if the run cannot be; see `trainer.train_run` for the rest.
    """
    nproc = _ranks(recipe, nproc)
    order = order_of(recipe, corpus, "train")
    held_out = order_of(recipe, corpus, "held_out")  # packed once here, not by every rank
    check_ranks(order.batch, nproc)
    config = config_of(recipe, corpus)
    learning = check_parameters(recipe, corpus, config)
    settings, reasons = decide(
        recipe,
        order,
        flops_per_token=config.flops_per_token(attention_span(order)),
        hidden_parameters=hidden_parameters(config),
        ranks=nproc,
        threads=threads_for(1),
        gpu=torch.cuda.is_available(),
        built_in=isinstance(config, ModelConfig),
    )
    folder = new_run_folder(recipe, corpus.workspace.runs)
    with locked(folder):
        write_file(folder / "recipe.yaml", dump(recipe).encode())
        run = start_run(folder, recipe, corpus, settings, nproc, order.state(0))
        notes = NotesFile(folder, console)
        notes.note(f"run {folder}: {config.parameters():,} parameters, {nproc} {'rank' if nproc == 1 else 'ranks'}")
        if not held_out.steps:
            reasons.append(f"no validation: train.held_out is {recipe.train.held_out:g}, and holds no document back")
        for reason in ([learning] if learning else []) + reasons:
            notes.note(reason)
        return _go(run, nproc, console)


def resume(run: Path, *, nproc: int | None = None, console: Console) -> dict[str, Any]:
    """Go on with a run from its newest valid checkpoint, on as many ranks as it had, or on `nproc`.

    Raises UsageError if the run is finished or is being trained by another process.
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
        ranks = nproc or opened.ranks
        check_ranks(opened.settings.batch, ranks)
        if ranks != opened.ranks:
            opened = opened.updated(ranks=ranks)
        return _go(opened, ranks, console)


def new_run_folder(recipe: Recipe, runs: Path | None = None) -> Path:
    """Claim workspace/runs/<name>-001, or the next free number."""
    return claim_folder(runs or folder_of(recipe.workspace) / "runs", recipe.name)


def _ranks(recipe: Recipe, nproc: int) -> int:
    layout = recipe.train.layout
    if not isinstance(layout, Layout) or layout.data in (1, nproc):
        return nproc
    if nproc == 1:
        return layout.data
    raise UsageError(
        f"--nproc {nproc} and train.layout.data {layout.data} disagree", fix="set one of them, or both alike"
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
