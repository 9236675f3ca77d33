"""What a rank's memory goes to, told before it is taken: weights, gradients, optimiser, activations, logits.

The model is cut for one rank of a layout while it lies on no device, so weights and what goes with them are exact;
what a block keeps is counted on tensors without memory (`model/activations.py`), times the micro-batches in flight;
head and loss follow from `model/loss.py`. It is what a step's tensors take within 10%
(`tests/train/test_footprint.py`). A process takes more: Python, torch, their scratch space and mapped pages, some 0.6
GB, and what the C library leaves unused between blocks. No rank, collective or memory is needed, so a launcher can tell
it of a rank that is dead.
Cost: some 0.3 s; several seconds the first time, for what torch imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sheaf.console import size
from sheaf.model.activations import Held, held_by
from sheaf.model.adapters import Lora, attach
from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Decoder
from sheaf.model.loss import CHUNK_TOKENS
from sheaf.model.pieces import chunk_range
from sheaf.model.recompute import Recompute
from sheaf.parallel.mesh import AXES, Axis, Group
from sheaf.parallel.parallelize import cut_stage, layers_of
from sheaf.parallel.schedule import plan, stages_of
from sheaf.recipe import Layout
from sheaf.train.optimizer import Kind, state_tensors


@dataclass(frozen=True)
class Shape:
    """What besides model and layout decides about a rank's memory. passes: micro-batches of a step."""

    micro_samples: int
    sequence_length: int
    passes: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank. activations: what blocks keep for their backward, of all micro-batches in flight. block: more,
    while one block goes backward. logits: of a chunk, with the head's gradient. update: what the optimiser makes and
    drops. copy: of weights and optimiser state, written as a checkpoint while training goes on."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    block: int
    logits: int
    update: int
    copy: int

    @property
    def peak(self) -> int:
        state = self.weights + self.gradients + self.optimizer + self.copy
        return state + max(self.activations + max(self.block, self.logits), self.update)

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimizer,
            "activations": self.activations,
            "one block's backward": self.block,
            "logits": self.logits,
            "a checkpoint's copy": self.copy,
        }
        return ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)


# Blocks that have been traced in this process, by all that their tensors depend on: layouts have many in common.
_HELD: dict[tuple[object, ...], Held] = {}


class Rank:
    """One rank of a layout, on paper. Only for models of `model/decoder.py`."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        rank: int,
        shape: Shape,
        lora: Lora | None = None,
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        self.config, self.layout, self.shape = config, layout, shape
        place = np.unravel_index(rank, tuple(getattr(layout, axis) for axis in AXES))
        self.at: dict[Axis, int] = {axis: int(at) for axis, at in zip(AXES, place, strict=True)}
        self.item = shape.dtype.itemsize
        self.lora, self.frozen = lora, frozen
        self.stages = [self._stage(layers) for layers in layers_of(config, layout, self.at["pipeline"])]
        self.parameters = {name: p for stage in self.stages for name, p in stage.named_parameters()}
        self.blocks = [block for stage in self.stages for _, block in stage.model.held()]

    def footprint(self, optimizer: Kind, modes: Sequence[Recompute]) -> Footprint:
        """modes: what each of the blocks here computes again, in their order."""
        numbers = {name: self._elements(p) for name, p in self.parameters.items()}
        learning = {name: n for name, n in numbers.items() if self.parameters[name].requires_grad}
        tensors = {name: state_tensors(name, p, optimizer) for name, p in self.parameters.items()}
        weights = 4 * sum(numbers.values())
        state = 4 * sum(n * tensors[name] for name, n in learning.items())
        matrices = sum(n for name, n in learning.items() if tensors[name] == 1)
        first = self.at["data"] == self.at["context"] == 0
        kept = self.kept(modes)
        return Footprint(
            weights=weights,
            gradients=4 * sum(learning.values()),
            optimizer=state,
            activations=kept + self._gathered() + self._outside_blocks(),
            block=self.activations(modes) - kept,
            logits=self._logits(),
            update=2 * self.item * matrices,  # directions and what is made of them
            copy=(weights if self.lora is None else 4 * sum(learning.values())) + state if first else 0,
        )

    def kept(self, modes: Sequence[Recompute]) -> int:
        """Bytes that the blocks keep, of all micro-batches in flight."""
        return sum(self.held(mode).kept for mode in modes) * self.in_flight // len(modes)

    def activations(self, modes: Sequence[Recompute]) -> int:
        """Their peak: a block goes backward while those before it still keep theirs."""
        here = peak = 0
        for mode in modes:
            here += self.held(mode).kept
            peak = max(peak, here + self.held(mode).more)
        return self.kept(modes) - here + max(here, peak)

    def held(self, mode: Recompute) -> Held:
        shape, cut = self.shape, self.layout.tensor
        positions = (shape.micro_samples, shape.sequence_length // self.layout.context)
        learning = tuple((tuple(p.shape), p.requires_grad) for p in self.blocks[0].parameters())
        key = (
            repr(replace(self.config, num_hidden_layers=1)),
            mode,
            positions,
            cut,
            self.layout.context,
            shape.dtype,
            learning,
        )
        if key not in _HELD:
            _HELD[key] = held_by(self.blocks[0], self.config, mode, positions, cut, shape.dtype)
        return _HELD[key]

    @cached_property
    def in_flight(self) -> int:
        """Blocks times micro-batches whose backward is still to come, at most."""
        layout = self.layout
        if layout.pipeline == 1:
            return len(self.blocks)
        place = self.at["pipeline"]
        numbers = stages_of(layout.schedule, layout.pipeline, place)
        blocks = {number: len(stage.model.held()) for number, stage in zip(numbers, self.stages, strict=True)}
        last = "weights" if layout.schedule == "zero-bubble" else "backward"
        now = most = 0
        for one in plan(layout.schedule, layout.pipeline, self.shape.passes).passes[place]:
            now += blocks[one.stage] * ((one.work == "forward") - (one.work == last))
            most = max(most, now)
        return most

    def _stage(self, layers: range) -> Decoder:
        with torch.device("meta"):
            model = Decoder(self.config, self.shape.dtype)
        if self.lora is not None:
            attach(model, self.lora)
        for name, parameter in model.named_parameters():
            if name in self.frozen:
                parameter.requires_grad_(False)
        cut_stage(model, layers, self.layout, self._group, {})
        return model

    def _elements(self, parameter: Tensor) -> int:
        if self.layout.shard == 1 or parameter.ndim < 2:
            return parameter.numel()
        start, end = chunk_range(parameter.shape[0], self.layout.shard, self.at["shard"])
        return (end - start) * parameter[0].numel()

    def _gathered(self) -> int:
        """Weights that are put together: those of two blocks, and embedding and head throughout."""
        if self.layout.shard == 1:
            return 0
        block = sum(p.numel() for p in self.blocks[0].parameters())
        outside = sum(p.numel() for name, p in self.parameters.items() if "layers." not in name)
        return self.item * (2 * block + outside)

    def _outside_blocks(self) -> int:
        """What the last norm and the head keep."""
        return 2 * self._positions * self.config.hidden_size * 4 if self.stages[-1].ends else 0

    def _logits(self) -> int:
        if not self.stages[-1].ends:
            return 0
        v, d, n = self.config.vocab_size // self.layout.tensor, self.config.hidden_size, self._positions
        chunk = min(CHUNK_TOKENS, n) * v
        cast = v * d * self.item if self.item < 4 else 0
        forward = cast + chunk * self.item + v * d * (4 + self.item) + n * d * self.item
        if self.layout.tensor > 1:
            forward += 8 * chunk + n * d * self.item
        backward = 2 * n * d * self.item + 2 * 4 * v * d
        return max(forward, backward)

    @property
    def _positions(self) -> int:
        return self.shape.micro_samples * self.shape.sequence_length // self.layout.context

    def _group(self, axis: Axis) -> Group:
        """Of nobody: its name is no real group's."""
        ranks = getattr(self.layout, axis)
        return Group(ranks, self.at[axis], tuple(-1 - place for place in range(ranks)))
