"""Start a run, or go on with one: decide what the recipe leaves open, then train here or on several ranks."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sheaf import allowance
from sheaf import engine as engines
from sheaf.console import Console
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import OutOfMemory, UsageError
from sheaf.files import folder_of, write_file, write_json
from sheaf.model.config import ModelConfig
from sheaf.model.memory import keep_memory, return_memory
from sheaf.parallel.layout import ranks_of
from sheaf.parallel.ranks import alone, threads_for
from sheaf.recipe import Layout, Recipe
from sheaf.recipe_file import dump
from sheaf.train.checkpoint import newest_valid
from sheaf.train.curriculum import changed
from sheaf.train.machines import Machines
from sheaf.train.notes import NotesFile
from sheaf.train.out_of_memory import smaller_or_raise
from sheaf.train.plan import plan_of
from sheaf.train.run import Run, claim_folder, locked, start_run
from sheaf.train.settings import attention_span, decide
from sheaf.train.setup import exact, facts_of, layout_of, order_of, placed
from sheaf.train.supervise import summary, supervise
from sheaf.train.trainer import train_run

RESERVE_BYTES = 64 << 20


def train(
    recipe: Recipe,
    corpus: CorpusVersion,
    *,
    nproc: int | None = None,
    start_only: bool = False,
    engine: str = "local",
    machines: Machines | None = None,
    forecast: dict[str, Any] | None = None,
    console: Console,
) -> dict[str, Any]:
    """Start a new run and train it to its end. nproc: ranks (None: as many as the layout has, or one). engine: "local",
    on this machine, or "ray". machines: on all of these, of which this one is the host; they say how many ranks.
    forecast: of the run (`forecast/`), to be kept in its folder.

    start_only: make the run, train nothing, return {"run"} and the arguments that torchrun needs for its workers,
    "worker"; nproc is then the number of ranks on all machines.
    Returns {"run", "steps", "loss", "validation_loss", "tokens_per_second", "peak_memory_bytes", "checkpoint", …}.
    Raises RecipeError or UsageError before a folder is made if the run cannot be; see `trainer.train_run` for the rest.
    """
    engines.check_name(engine)
    nproc = nproc if machines is None else machines.ranks
    recipe = placed(recipe, corpus)
    order = order_of(recipe, corpus, "train")
    held_out = order_of(recipe, corpus, "held_out")  # packed once here, not by every rank
    plan = plan_of(recipe, corpus)
    config = plan.config
    asked = recipe.train.layout
    ranks = nproc or (1 if asked == "auto" else ranks_of(asked))
    settings, reasons = decide(
        recipe,
        order,
        flops_per_token=config.flops_per_token(attention_span(order)),
        hidden_parameters=config.hidden_parameters(),
        ranks=ranks,
        threads=threads_for(1),
        gpu=torch.cuda.is_available(),
        built_in=isinstance(config, ModelConfig),
    )
    layout = layout_of(recipe, nproc, facts_of(recipe, plan, settings, ranks))
    if plan.learning < plan.total:
        reasons.append(f"{plan.learning:,} of {plan.total:,} parameters are trained, the others are frozen")
    folder = new_run_folder(recipe, corpus.workspace.runs)
    with locked(folder):
        write_file(folder / "recipe.yaml", dump(recipe).encode())
        run = start_run(folder, recipe, corpus, settings, ranks, layout, order.state(0))
        if forecast is not None:
            write_json(folder / "forecast.json", forecast)
        notes = NotesFile(folder, console)
        notes.note(f"run {folder}: {config.parameters():,} parameters, {ranks} {'rank' if ranks == 1 else 'ranks'}")
        if not held_out.steps:
            reasons.append(f"no validation: train.held_out is {recipe.train.held_out:g}, and holds no document back")
        for reason in reasons:
            notes.note(reason)
        if start_only:
            return {"run": str(run.folder), "worker": ["-m", "sheaf.train.worker", str(run.folder)]}
        if engine == "local" and machines is None:
            return _go(run, ranks, console)
    return _elsewhere(run, ranks, machines, console)


def resume(
    run: Path,
    *,
    nproc: int | None = None,
    layout: Layout | None = None,
    weights: Mapping[str, float] | None = None,
    until: int | None = None,
    engine: str = "local",
    machines: Machines | None = None,
    console: Console,
) -> dict[str, Any]:
    """Go on with a run from its newest valid checkpoint, spread as it was, or over `nproc` ranks, or as `layout` says.
    engine, machines: as of `train`.

    weights: of sources, from that checkpoint's step on. until: stop after that step, with a checkpoint to go on from,
    and return {"run", "steps"}. Raises UsageError if the run is finished or is being trained by
    another process.
    """
    engines.check_name(engine)
    nproc = nproc if machines is None else machines.ranks
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
            ranks = nproc or (opened.ranks if layout is None else ranks_of(layout))
            plan = plan_of(recipe, opened.corpus())
            chosen = layout_of(recipe, nproc, facts_of(recipe, plan, opened.settings, ranks))
            opened = opened.updated(ranks=ranks, layout=chosen and chosen.model_dump())
        if weights:
            opened = _with_weights(opened, weights, console)
        if opened.until != until:
            opened = opened.updated(until=until)
        if engine == "local" and machines is None:
            return _go(opened, opened.ranks, console)
    return _elsewhere(opened, opened.ranks, machines, console)


def _with_weights(run: Run, weights: Mapping[str, float], console: Console) -> Run:
    """The run with other weights from its next step on, written down."""
    checkpoint = newest_valid(run.folder, console.note, run.wrote)
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


def _go(run: Run, nproc: int, console: Console) -> dict[str, Any]:
    """Train a run that this process holds."""
    return _finished(_train_here(run, console) if nproc == 1 else supervise(run, nproc, console))


def _elsewhere(run: Run, nproc: int, machines: Machines | None, console: Console) -> dict[str, Any]:
    """Train a run that nobody holds, as its rank 0 will: on these machines, or on Ray."""
    if machines is not None:
        machines.train(run.folder, run.recipe)
        return _finished(Run.open(run.folder))
    from sheaf.train.ray_ranks import train_on_ray

    return _finished(train_on_ray(run, nproc, console))


def _finished(run: Run) -> dict[str, Any]:
    if run.result is None:
        if run.until is None:
            raise AssertionError("a run that ended well has a result")
        return {"run": str(run.folder), "steps": run.until}
    return run.updated(result={**run.result, **summary(run.folder)}).result or {}


def _train_here(run: Run, console: Console) -> Run:
    keep_memory()
    threads = run.settings.threads
    notes = NotesFile(run.folder, console)
    if threads > allowance.cores():
        notes.note(f"{threads} threads on {allowance.cores()} cores: as many as when the run began, for the same bits")
    # Untouched address space, to be given up: where a process is limited (ulimit), none is left for a thread otherwise.
    reserve = mmap.mmap(-1, RESERVE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        with exact(threads):
            return train_run(run, alone(), notes)
    except OutOfMemory as error:
        reserve.close()
        run = smaller_or_raise(run, error, notes.note)
    gc.collect()  # what the error held: the model, and the activations that were too many
    return_memory()
    # In a fresh process: what the C library could not give back of this one would lack there.
    return supervise(run, 1, console)
