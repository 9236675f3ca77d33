"""What a rank trains with, made from a run and perhaps a checkpoint: its part of the model, optimiser and guard."""

from __future__ import annotations

from sheaf.console import Console
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.model.pieces import Values
from sheaf.model.recompute import Recompute
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.pulse import watch_compiling
from sheaf.recipe import Train
from sheaf.train.buckets import buckets_of
from sheaf.train.checkpoint import Checkpoint
from sheaf.train.learner import Learner
from sheaf.train.on_paper import on_paper
from sheaf.train.optimizer import Update
from sheaf.train.plan import ModelPlan, new_values, planned
from sheaf.train.run import Run
from sheaf.train.settings import Settings
from sheaf.train.setup import DTYPES
from sheaf.train.spikes import SpikeGuard


def learner_of(
    run: Run, corpus: CorpusVersion, mesh: Mesh, checkpoint: Checkpoint | None, micro_samples: int, console: Console
) -> tuple[ModelPlan, Learner]:
    """The model of a run with its weights (its optimiser's state is still that before the first step), and what is
    known of it. Called by every rank. Raises UsageError for what the model or the machine cannot do."""
    recipe, settings = run.recipe, run.settings
    train = recipe.train
    plan, values = _model(run, corpus, checkpoint, is_first=mesh.ranks.rank == 0)
    if settings.compile:
        watch_compiling()
    how = How(
        settings.compile,
        _recompute(plan, train, settings, mesh, console),
        plan.lora,
        plan.frozen,
        communication=train.communication,
        buckets=buckets_of(mesh, train.communication, plan.config, checkpoint, console.note),
    )
    spread = Spread(plan.config, DTYPES[train.precision], mesh, how, values)
    if spread.isolation:
        console.note(f"the model is of transformers' code; {spread.isolation}")
    update = Update(settings.optimizer, train.weight_decay, train.betas, train.precision, train.rates)
    guard = SpikeGuard(train.spikes, run.avoided)
    offload = train.offload_optimizer and _can_offload(settings, mesh, console)
    return plan, Learner(spread, update, train.clip, micro_samples, guard, offload=offload)


def _model(
    run: Run, corpus: CorpusVersion, checkpoint: Checkpoint | None, *, is_first: bool
) -> tuple[ModelPlan, Values]:
    """is_first: of the ranks; it alone looks at a base as a whole."""
    if checkpoint is None:
        return new_values(run.recipe, corpus, digest=is_first)
    return planned(run.recipe, checkpoint.config, checkpoint.lora), checkpoint.values(check=is_first)


def _recompute(
    plan: ModelPlan, train: Train, settings: Settings, mesh: Mesh, console: Console
) -> Recompute | tuple[Recompute, ...]:
    if train.activation_memory is None:
        return train.activation_checkpointing
    paper = on_paper(plan, train, settings, mesh.layout, mesh.ranks.rank)
    if paper is None:
        raise UsageError(
            "what this model's blocks hold is not known before they run",
            where="train.activation_memory",
            why="it is of transformers' code",
            fix="set train.activation_checkpointing instead",
        )
    console.note(paper.choice())
    return paper.layer_modes


def _can_offload(settings: Settings, mesh: Mesh, console: Console) -> bool:
    """Whether there is a GPU whose memory that saves. Raises UsageError for an optimiser that cannot be."""
    if mesh.ranks.device.type == "cpu":
        console.note("train.offload_optimizer changes nothing: without a GPU the optimiser's state is in host memory")
        return False
    kind = settings.optimizer
    if kind == "schedule-free" or (kind == "muon" and mesh.ranks.world > 1):
        raise UsageError(
            f"{kind} is not updated in host memory",
            where="train.offload_optimizer",
            why="its mean of the weights is evaluated where they lie"
            if kind == "schedule-free"
            else "its matrices are put together from all ranks, which GPUs do among themselves",
            fix="set train.optimizer to adamw, or leave train.offload_optimizer out",
        )
    return True
