"""From a recipe and a corpus to what a run needs besides its model (`plan.py`): order, layout, exact kernels."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Literal

import torch
from torch.utils import deterministic

from sheaf.corpus.version import CorpusVersion
from sheaf.errors import DataRefused, UsageError
from sheaf.model.config import ModelConfig
from sheaf.model.recompute import COST
from sheaf.order.order import Order
from sheaf.parallel.layout import Facts, check_layout, of_ranks, possible
from sheaf.parallel.ranks import memory_for
from sheaf.recipe import Layout, Recipe
from sheaf.train.curriculum import with_steps
from sheaf.train.muon import muon_flops_of
from sheaf.train.plan import ModelPlan, plan_of
from sheaf.train.run import Run
from sheaf.train.settings import Settings, batch_samples, seed_of

FILLS = "fill_uninitialized_memory"  # a property that torch gives the module at run time
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def order_of(recipe: Recipe, corpus: CorpusVersion, split: Literal["train", "held_out"]) -> Order:
    """The order that a recipe asks for; its packing is kept in the workspace. Raises DataRefused without text.

    Held-out text is not cut where training text is cut to be concatenated: what is measured is the same either way.
    """
    if not len(corpus.documents):
        raise DataRefused(
            "there is no text to train on",
            where=f"corpus {corpus.digest[:12]} in {corpus.workspace.root}",
            why="none of its records has text: they are pictures or sounds, and this version trains on text alone",
            fix='add a source that holds text, or take the records from Python: `corpus.records_of("image")`',
        )
    if split == "train":
        recipe = with_steps(recipe, lambda placed: order_of(placed, corpus, "train"))
    packing = recipe.train.packing
    return Order.build(
        corpus.documents,
        corpus.source_names,
        corpus.fingerprint,
        sequence_length=recipe.train.sequence_length,
        batch=batch_samples(recipe.train),
        seed=seed_of(recipe),
        mixture=recipe.mixture,
        held_out=recipe.train.held_out,
        split=split,
        cache=corpus.workspace.packs,
        losses=corpus.loss_files(),
        packing="best-fit" if split == "held_out" and packing == "concatenate" else packing,
        curriculum=recipe.curriculum if split == "train" else (),
    )


def placed(recipe: Recipe, corpus: CorpusVersion) -> Recipe:
    """The recipe with its changes of weights at steps, as a run of it keeps them."""
    return with_steps(recipe, lambda other: order_of(other, corpus, "train"))


def layout_of(recipe: Recipe, nproc: int | None, facts: Facts) -> Layout | None:
    """The layout of a run; None if its ranks are to choose one. Raises UsageError if there is none."""
    asked = recipe.train.layout
    if asked != "auto":
        layout = of_ranks(asked, nproc)
        check_layout(layout, facts)
        return layout
    if nproc in (None, 1):
        return Layout()
    if not possible(nproc, facts):
        check_layout(Layout(data=nproc), facts)
    return None


def placed_on(run: Run, ranks: int) -> Run | None:
    """The run on so many ranks, as its recipe has it there; None if it cannot be."""
    recipe = run.recipe
    with contextlib.suppress(UsageError):
        layout = layout_of(recipe, ranks, facts_of(recipe, plan_of(recipe, run.corpus()), run.settings, ranks))
        return run.updated(ranks=ranks, layout=layout and layout.model_dump())
    return None


def facts_of(recipe: Recipe, plan: ModelPlan, settings: Settings, ranks: int, span: float = 0.0) -> Facts:
    """What the layout of so many ranks on this machine depends on. span: see `Facts`; it only decides about time."""
    muon = settings.optimizer == "muon"
    return Facts(
        config=plan.config,
        sequence_length=recipe.train.sequence_length,
        batch=settings.batch,
        micro_tokens=settings.micro_tokens,
        compile=settings.compile,
        packing=recipe.train.packing,
        memory_bytes=memory_for(ranks),
        compute_bytes=DTYPES[recipe.train.precision].itemsize,
        update_bytes=DTYPES[recipe.train.precision].itemsize if muon else 0,
        learned=plan.learned,
        adapters=plan.lora is not None,
        communication=recipe.train.communication,
        span=span,
        again=COST[recipe.train.activation_checkpointing],
        update_flops=muon_flops_of(plan.config) if muon and isinstance(plan.config, ModelConfig) else 0.0,
    )


@contextlib.contextmanager
def exact(threads: int) -> Generator[None]:
    """Inside the block the same inputs give the same bits: this many threads, deterministic kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        _fills(),
    )
    torch.set_num_threads(threads)
    _be_deterministic(True)
    _set_fills(False)  # it would fill every torch.empty, and nothing here reads one
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        _be_deterministic(before[1])
        _set_fills(before[2])


def _be_deterministic(mode: bool) -> None:
    """As torch.use_deterministic_algorithms, which imports torch's compiler to tell it: five seconds of processor time
    that a run without it need not spend. `model/compile.py` tells it when it comes."""
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(mode)
    else:
        torch.set_deterministic_debug_mode("error" if mode else "default")


def _fills() -> bool:
    return bool(getattr(deterministic, FILLS))


def _set_fills(value: bool) -> None:
    setattr(deterministic, FILLS, value)
