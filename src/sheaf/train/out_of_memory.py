"""When memory runs out: say what it went to, and go on with a smaller micro-batch, or say what would help.

The micro-batch is the one number that decides about memory and about nothing else: a step's samples, loss and update
are the same whatever the forward passes it is cut into, up to rounding. So the run goes on from its newest checkpoint
with the next size that makes equal passes and is smaller by a quarter or more (less would not be worth a restart), and
keeps to it: the size is one of the run's settings. Memory that runs out before the first step, or with one sample in a
pass, is not to be cured so.

An allocation that fails is an error of the rank, and told here; a rank that the kernel killed is told by its launcher
(`supervise`). One process that the kernel kills has nobody beside it to tell.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace

from sheaf.errors import OutOfMemory
from sheaf.model.memory import ran_out, return_memory
from sheaf.parallel.layout import layout_on, problems
from sheaf.recipe import Layout
from sheaf.train.on_paper import OnPaper, on_paper
from sheaf.train.plan import plan_of
from sheaf.train.run import Run
from sheaf.train.setup import facts_of


@contextmanager
def explained(run: Run, rank: int, world: int, *, in_steps: bool) -> Generator[None]:
    """Inside, an allocation that fails is raised as OutOfMemory, with the numbers. in_steps: the model is built."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        traceback.clear_frames(error.__traceback__)  # they hold what the step had taken, and telling takes some too
        return_memory()
        why, fix = _told(run, rank, world)
        found = OutOfMemory(
            "memory ran out"
            + (f" on rank {rank}" if world > 1 else "")
            + ("" if in_steps else " before the first step"),
            where=str(run.folder),
            why=f"{said}; {why}",
            fix=fix,
        )
        found.in_steps = in_steps
        raise found from error


def _told(run: Run, rank: int, world: int) -> tuple[str, str]:
    """What the rank needs, and what would need less."""
    try:
        paper = paper_of(run, rank, world)
        return needs(paper), advice(paper)
    except (RuntimeError, MemoryError):  # no thread, no tensor: a limit may leave nothing at all
        return "there is not even enough left to tell what it went to", advice(None)


def paper_of(run: Run, rank: int, world: int) -> OnPaper | None:
    recipe = run.recipe
    return on_paper(plan_of(recipe, run.corpus()), recipe.train, run.settings, layout_of_ranks(run, world), rank)


def needs(paper: OnPaper | None) -> str:
    """What a rank needs, part by part."""
    if paper is None:
        return "what a model of transformers' code needs is not known before it runs"
    shape, footprint = paper.rank.shape, paper.footprint
    return (
        f"with {shape.micro_samples} samples of {shape.sequence_length:,} tokens in a forward pass a rank needs about "
        f"{footprint}, beside some 0.6 GB for Python and libraries"
    )


def advice(paper: OnPaper | None) -> str:
    """What would need less."""
    return "lower train.micro_batch_tokens" if paper is None else paper.advice()


def smaller(run: Run, world: int) -> Run | None:
    """The run with the next smaller micro-batch, written down; None if its recipe forbids it, or there is none."""
    recipe, layout = run.recipe, layout_of_ranks(run, world)
    if recipe.train.out_of_memory == "stop":
        return None
    length, ranks = recipe.train.sequence_length, layout.data * layout.shard
    now, share = run.settings.micro_samples(length, ranks), -(-run.settings.batch // ranks)
    plan = plan_of(recipe, run.corpus())
    for most in range(3 * now // 4, 0, -1):
        passes = -(-share // most)
        settings = replace(run.settings, micro_tokens=-(-share // passes) * length)
        if not any(problems(layout, facts_of(recipe, plan, settings, world))):
            return run.updated(settings=settings.to_json())
    return None


def smaller_or_raise(run: Run, error: OutOfMemory, note: Callable[[str], None], world: int = 1) -> Run:
    """`smaller`, told to `note` with the numbers; raises the error if there is none, or it would not help."""
    after = smaller(run, world) if error.in_steps else None
    if after is None:
        raise error
    note(f"{error.what}: {error.why}")
    note(in_words(run, after, world))
    return after


def in_words(before: Run, after: Run, world: int) -> str:
    length, layout = before.recipe.train.sequence_length, layout_of_ranks(before, world)
    counts = [run.settings.micro_samples(length, layout.data * layout.shard) for run in (before, after)]
    return (
        f"going on with {counts[1]} samples in a forward pass instead of {counts[0]}; "
        f"the global batch stays {before.settings.batch}"
    )


def layout_of_ranks(run: Run, world: int) -> Layout:
    """Of a run on so many ranks; data parallel, where they died before they had chosen one."""
    return Layout(data=world) if run.layout is None else layout_on(run.layout, world)
