"""A run's ranks on paper: what each computes again to stay within a budget of memory, and what its memory goes to.

`train.activation_memory` bounds what the blocks of a rank hold at any time of a step, the one that goes backward
included. Of all ways to give its blocks a mode the one is taken that costs least time among those that fit; blocks
cost alike, so it is only a question of how many, and all numbers of them are tried. The first layers compute most
again: their backward comes when the others have gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sheaf.console import size
from sheaf.errors import UsageError
from sheaf.model.config import ModelConfig
from sheaf.model.recompute import COST, Recompute
from sheaf.parallel.layout import describe
from sheaf.recipe import Layout, Train
from sheaf.train.footprint import Footprint, Rank, Shape
from sheaf.train.optimizer import Kind
from sheaf.train.plan import ModelPlan
from sheaf.train.settings import Settings
from sheaf.train.setup import DTYPES


@dataclass(frozen=True)
class OnPaper:
    """One rank of a run, and what its blocks compute again. layer_modes: of all layers by number, those of other ranks
    included; they are of no meaning here."""

    rank: Rank
    modes: tuple[Recompute, ...]
    train: Train
    optimizer: Kind

    @property
    def layer_modes(self) -> tuple[Recompute, ...]:
        found: list[Recompute] = ["none"] * self.rank.config.num_hidden_layers
        numbers = (number for stage in self.rank.stages for number, _ in stage.model.held())
        for number, mode in zip(numbers, self.modes, strict=True):
            found[number] = mode
        return tuple(found)

    @property
    def footprint(self) -> Footprint:
        return self._footprint(self.rank, self.modes)

    def _footprint(self, rank: Rank, modes: Sequence[Recompute], *, offload: bool = False) -> Footprint:
        """Of the memory that may run out: a GPU's, where there is one. Copies for checkpoints are not there."""
        found = rank.footprint(self.optimizer, modes)
        if not torch.cuda.is_available():
            return found
        offload = offload or self.train.offload_optimizer
        return replace(found, copy=0, optimizer=0 if offload else found.optimizer)

    def _other(self, layout: Layout, shape: Shape) -> Rank:
        return Rank(self.rank.config, layout, 0, shape, self.rank.lora, self.rank.frozen)

    def choice(self) -> str:
        """What was chosen for a budget, in words."""
        counts = [f"{self.modes.count(mode)} {mode}" for mode in COST if mode in self.modes]
        return (
            f"activations of {size(self.rank.activations(self.modes))} a rank, at most {self.train.activation_memory} "
            f"allowed: of {len(self.modes)} blocks {', '.join(counts)}"
        )

    def advice(self) -> str:
        """What would need less memory, with numbers."""
        now, layout, shape = self.footprint, self.rank.layout, self.rank.shape
        found: list[str] = []
        if shape.micro_samples > 1:
            half = replace(shape, micro_samples=shape.micro_samples // 2, passes=2 * shape.passes)
            other = self._footprint(self._other(layout, half), self.modes)
            tokens = half.micro_samples * shape.sequence_length
            found.append(f"train.micro_batch_tokens: {tokens} ({size(other.peak)} a rank)")
        if set(self.modes) != {"full"}:
            everything: list[Recompute] = ["full"] * len(self.modes)
            other = self._footprint(self.rank, everything)
            found.append(f"train.activation_checkpointing: full ({size(other.peak)})")
        if layout.shard == 1:
            ranks = max(2, layout.data)
            sharded = layout.model_copy(update={"data": 1, "shard": ranks})
            other = self._footprint(self._other(sharded, shape), self.modes)
            found.append(f"train.layout: {describe(sharded)} ({size(other.peak)})")
        if torch.cuda.is_available() and not self.train.offload_optimizer:
            other = self._footprint(self.rank, self.modes, offload=True)
            found.append(f"train.offload_optimizer: true ({size(other.peak)})")
        if shape.micro_samples == 1:
            found.append("a shorter train.sequence_length")
        return f"instead of {size(now.peak)} a rank: " + ", or ".join(found)


def on_paper(plan: ModelPlan, train: Train, settings: Settings, layout: Layout, rank: int) -> OnPaper | None:
    """None for a model of transformers' code. Raises UsageError if the activations do not fit into the recipe's budget,
    however much is computed again."""
    if not isinstance(plan.config, ModelConfig):
        return None
    world = layout.data * layout.shard
    samples = settings.micro_samples(train.sequence_length, world)
    passes = math.ceil(settings.batch / world / samples)
    shape = Shape(samples, train.sequence_length, passes, DTYPES[train.precision])
    found = Rank(plan.config, layout, rank, shape, plan.lora, plan.frozen)
    if train.activation_memory is None:
        return OnPaper(found, (train.activation_checkpointing,) * len(found.blocks), train, settings.optimizer)
    return OnPaper(found, _cheapest(found, train.activation_memory), train, settings.optimizer)


def _cheapest(rank: Rank, budget: str) -> tuple[Recompute, ...]:
    number, unit = budget.rstrip("MGB "), budget[-2:]
    most = float(number) * (1e9 if unit == "GB" else 1e6)
    blocks = len(rank.blocks)
    mixes = [
        _mix({"full": full, "selective": selective, "none": blocks - full - selective})
        for full in range(blocks + 1)
        for selective in range(blocks + 1 - full)
    ]
    fitting = [mix for mix in mixes if rank.activations(mix) <= most]
    if fitting:
        return min(fitting, key=lambda mix: sum(COST[mode] for mode in mix))
    least = min(rank.activations(mix) for mix in mixes)
    raise UsageError(
        f"activations of {size(least)} do not fit into {budget}, though every block computes again what it can",
        where="train.activation_memory",
        why=f"{rank.shape.micro_samples} samples of {rank.shape.sequence_length:,} tokens go forward at once on a rank",
        fix=f"raise it, or lower train.micro_batch_tokens below {rank.shape.micro_samples * rank.shape.sequence_length}"
        if rank.shape.micro_samples > 1
        else "raise it, or divide the work over tensor, context or pipeline ranks",
    )


def _mix(counts: dict[Recompute, int]) -> tuple[Recompute, ...]:
    return tuple(mode for mode, count in counts.items() for _ in range(count))
