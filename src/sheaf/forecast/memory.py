"""Memory of the rank with most, for any layout: weights, gradients, optimiser, activations, logits, the process.

What tensors take is `train/footprint.py`'s, on the meta device: exact for the first three, traced for the rest. A
model of many layers is taken at two smaller depths, and the rest follows, as all of it is linear in the layers of a
stage; so that a model of any size is told of in a second and is never allocated. Beside the tensors a rank's process
has Python, torch and what the allocator leaves unused; of a GPU: context, NCCL, fragments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from sheaf.forecast.subject import Subject
from sheaf.model.config import ModelConfig
from sheaf.parallel.layout import Facts
from sheaf.parallel.mesh import size_of
from sheaf.recipe import Layout
from sheaf.train.footprint import Footprint, Shape
from sheaf.train.footprint import Rank as PaperRank
from sheaf.train.on_paper import on_paper
from sheaf.train.setup import DTYPES

DEEP = 12  # layers from which on two smaller depths stand for all
PROCESS_BYTES = 0.47e9  # Python, torch, numba and other libraries, threads' scratch space: resident in a CPU rank
ALONE_BYTES = 0.13e9  # more, where the command itself is the rank: what it planned with
# Of what blocks keep and drop again: what the C library (glibc 2.36) leaves between them. Torch wants aligned blocks,
# and a hole that one leaves is a few bytes too small for the next of its size.
UNUSED = 0.45
GPU_BYTES, GPU_UNUSED = 2.0e9, 0.08  # context, cuBLAS and NCCL; what the caching allocator leaves
ERROR = 0.1  # of the whole


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. parts: at the peak. room: what there is for it."""

    parts: Mapping[str, float]
    room: float

    @property
    def peak(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.room

    @property
    def surely_not(self) -> bool:
        """Beyond what the error of this forecast leaves open."""
        return self.peak * (1 - ERROR) > self.room


def least_bytes(layout: Layout, facts: Facts) -> float:
    """Of weights, gradients and optimiser state, exactly but for the norms: a layout that has no room for it is out."""
    share = layout.shard * layout.tensor * layout.pipeline
    return (4 + (8 if facts.update_bytes else 12) * facts.learned) * facts.config.parameters() / share


def kept_bytes(subject: Subject, layout: Layout) -> float:
    """Of activations, at least: what the blocks of a first stage keep, of the micro-batches whose backward is to come.
    One block is traced, for all layouts that cut it alike; none is for a model whose memory is not told at all."""
    config, train = subject.plan.config, subject.recipe.train
    if not isinstance(config, ModelConfig) or train.activation_memory is not None:
        return 0.0
    shape = shape_of(subject, layout)
    mode = train.activation_checkpointing
    key = (id(subject.plan), mode, layout.tensor, layout.context, shape)
    if key not in _KEPT:
        shallow = replace(config, num_hidden_layers=1, window_layers=config.window_layers and config.window_layers[:1])
        cut = Layout(tensor=layout.tensor, context=layout.context)
        paper = PaperRank(shallow, cut, 0, shape, subject.plan.lora, subject.plan.frozen)
        _KEPT[key] = (subject.plan, paper.held(mode).kept)
    flying = min(layout.pipeline, shape.passes) * (config.num_hidden_layers // layout.pipeline)
    return _KEPT[key][1] * flying


# By plan (kept here too, so that its id is nobody else's) and cut: bytes that a block keeps.
_KEPT: dict[tuple[object, ...], tuple[object, int]] = {}


def memory_of(subject: Subject, layout: Layout, room: float, *, gpu: bool) -> Memory | None:
    """Of the rank with most; None for a model of transformers' code, which is not traced."""
    config = subject.plan.config
    if not isinstance(config, ModelConfig):
        return None
    found = max((_footprint(subject, config, layout, rank) for rank in _ranks(layout)), key=lambda one: one.peak)
    return Memory(_parts(found, subject, gpu=gpu, alone=size_of(layout) == 1), room)


def _ranks(layout: Layout) -> list[int]:
    """One of each place of a pipeline that may have most: its first and its last."""
    world = layout.data * layout.shard * layout.context * layout.tensor
    return [0] if layout.pipeline == 1 else [0, (layout.pipeline - 1) * world]


def _footprint(subject: Subject, config: ModelConfig, layout: Layout, rank: int) -> Footprint:
    stages = layout.pipeline * (2 if layout.schedule == "interleaved" else 1)
    layers = config.num_hidden_layers
    train, settings = subject.recipe.train, subject.settings
    if layers <= DEEP or layers < 3 * stages or train.activation_memory is not None:
        paper = on_paper(subject.plan, train, settings, layout, rank)
        if paper is None:
            raise AssertionError("a model of our code is on paper")
        return paper.rank.footprint(settings.optimizer, paper.modes)
    one, two = (_of_depth(subject, config, layout, rank, n * stages) for n in (1, 2))
    more = (layers - 2 * stages) / stages
    names = [field.name for field in fields(Footprint)]
    return Footprint(
        **{name: round(getattr(two, name) + more * (getattr(two, name) - getattr(one, name))) for name in names}
    )


def _of_depth(subject: Subject, config: ModelConfig, layout: Layout, rank: int, layers: int) -> Footprint:
    windows = config.window_layers and config.window_layers[:layers]
    shallow = replace(config, num_hidden_layers=layers, window_layers=windows)
    shape = shape_of(subject, layout)
    paper = PaperRank(shallow, layout, rank, shape, subject.plan.lora, subject.plan.frozen)
    modes = (subject.recipe.train.activation_checkpointing,) * len(paper.blocks)
    return paper.footprint(subject.settings.optimizer, modes)


def shape_of(subject: Subject, layout: Layout) -> Shape:
    train, world = subject.recipe.train, layout.data * layout.shard
    samples = subject.settings.micro_samples(train.sequence_length, world)
    passes = math.ceil(subject.settings.batch / world / samples)
    return Shape(samples, train.sequence_length, passes, DTYPES[train.precision])


def _parts(found: Footprint, subject: Subject, *, gpu: bool, alone: bool) -> dict[str, float]:
    """At the peak, which is in the passes or in the update. alone: one rank is all there is."""
    holes = 0.0 if gpu else UNUSED * (found.activations + found.block)
    passes = found.activations + max(found.block, found.logits) + holes >= found.update
    copy = 0 if gpu else found.copy
    optimizer = 0 if gpu and subject.recipe.train.offload_optimizer else found.optimizer
    parts: dict[str, float] = {"weights": found.weights, "gradients": found.gradients, "optimizer": optimizer}
    if passes:
        larger = "block" if found.block > found.logits else "logits"
        parts |= {"activations": found.activations, larger: max(found.block, found.logits)}
    else:
        parts |= {"update": found.update}
        holes = 0.0  # the update takes what they are
    parts["checkpoint"] = copy
    tensors = sum(parts.values())
    parts["process"] = GPU_BYTES if gpu else PROCESS_BYTES + (ALONE_BYTES if alone else 0)
    parts["unused"] = GPU_UNUSED * tensors if gpu else holes
    return {name: float(size) for name, size in parts.items() if size}
