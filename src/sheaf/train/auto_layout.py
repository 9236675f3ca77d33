"""The layout of a run that leaves it open: chosen by its ranks when they first meet, and then kept.

It rests on how fast they compute and talk, which nobody knows before. A run that is started again on as many ranks
keeps its layout, whatever the machine does then; on fewer or more ranks it is chosen anew.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from sheaf.console import Console
from sheaf.parallel.choose import choose
from sheaf.parallel.mesh import size_of
from sheaf.parallel.pulse import Phase, pulse
from sheaf.parallel.ranks import Ranks
from sheaf.train.plan import plan_of
from sheaf.train.probe import machine_here
from sheaf.train.run import Run
from sheaf.train.settings import attention_span
from sheaf.train.setup import DTYPES, facts_of, order_of


def laid_out(run: Run, ranks: Ranks, console: Console) -> Run:
    """The run with a layout of these ranks, written down if it is new. Called by every rank."""
    known = run.layout
    if run.recipe.train.layout != "auto" or (known is not None and size_of(known) == ranks.world):
        return run
    recipe = run.recipe
    corpus = run.corpus()
    span = attention_span(order_of(recipe, corpus, "train"))
    facts = facts_of(recipe, plan_of(recipe, corpus), run.settings, ranks.world, span)
    facts = replace(facts, memory_bytes=-max(ranks.rows([[-facts.memory_bytes]], 1))[0])
    dtype: torch.dtype = DTYPES[recipe.train.precision]
    with pulse.phase(Phase.STARTING):
        machine = machine_here(ranks, facts, dtype)
    layout, reasons = choose(ranks.world, facts, machine)
    for reason in reasons:
        console.note(reason)
    record = {"ranks": ranks.world, "layout": layout.model_dump()}
    return run.updated(**record) if ranks.rank == 0 else Run(run.folder, {**run.record, **record})
