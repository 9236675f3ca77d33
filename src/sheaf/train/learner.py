"""One step of training on one rank: a model, its gradients and its optimiser.

The loss of a step is Σ token losses of the global batch / valid tokens of the global batch, whatever the split into
ranks and micro-batches (a step that predicts nothing has loss 0): each backward adds its share of ∇l, `Gradients`
sums the shares over ranks, and every rank makes the same update. Cost beyond forward and backward: one all-reduce of
the gradients, one small message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sheaf.errors import TrainingFailed
from sheaf.model.adapters import trained
from sheaf.model.families import Model
from sheaf.order.loader import Batch, micro
from sheaf.parallel.data import Gradients
from sheaf.parallel.ranks import Ranks
from sheaf.train.optimizer import Optimizer, Update
from sheaf.train.spikes import SpikeGuard


@dataclass(frozen=True)
class StepResult:
    """Global figures of one step. positions: token positions that were computed, padding included."""

    loss: float
    gradient_norm: float
    positions: int
    stop: bool
    skipped: bool


class Learner:
    """model: on this rank's device, its layers possibly compiled. micro_samples: samples of one forward pass."""

    def __init__(
        self,
        model: Model,
        update: Update,
        clip: float,
        micro_samples: int,
        ranks: Ranks,
        guard: SpikeGuard | None = None,
    ) -> None:
        self.model = model
        self.clip = clip
        self.micro_samples = micro_samples
        self.ranks = ranks
        self.update = update
        self.guard = guard or SpikeGuard()
        self.optimizer = Optimizer(trained(model).items(), update)
        self.gradients = Gradients(trained(model).values(), ranks.world)

    def step(self, batch: Batch, rate: float, stop: bool = False) -> StepResult:
        """Train on this rank's part of a global batch. stop: this rank's wish; any rank's wish is everyone's.

        Raises TrainingFailed, before the update, if the loss or the gradient is not finite. Called by every rank.
        """
        parts = list(micro(batch, self.micro_samples))
        predictions = max(batch.valid_tokens, 1)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for part in parts:
            loss = self.loss_sum(part)
            if part is parts[-1]:
                self.gradients.expect()
            (loss / predictions).backward()
            loss_sum += loss.detach()
        self.gradients.finish()
        positions = sum(part.input_ids.size for part in parts)
        total, positions, stops = self.ranks.sum([loss_sum.item(), float(positions), float(stop)])
        loss, norm = total / predictions, self.gradients.norm().item()
        made = self.guard.passes(batch.step, loss, norm, self.ranks)
        if made and not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(batch, loss, norm)
        if made:
            if norm > self.clip:
                self.gradients.scale(self.clip / norm)
            self.optimizer.step(rate)
        self.gradients.zero()
        return StepResult(loss, norm, int(positions), stops > 0, not made)

    def loss_sum(self, part: Batch) -> Tensor:
        """fp32 sum of the token losses of one micro-batch."""
        hidden = forward(self.model, part)
        return self.model.next_token_loss(hidden, _tensor(part.labels, hidden.device))

    def reset_optimizer(self) -> None:
        """Forget all momenta, and what a spike is measured by: the state before the first update."""
        self.guard.forget()
        self.optimizer = Optimizer(trained(self.model).items(), self.update)

    def check_ranks_agree(self) -> None:
        """Raise TrainingFailed unless all ranks hold the same learned weights, bit for bit. Called by every rank."""
        total = sum(int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in trained(self.model).values())
        if not self.ranks.agree(float(total % 2**52)):
            raise TrainingFailed(
                "the ranks no longer hold the same weights",
                why="an update was computed differently on one of them: unequal machines, or faulty memory",
                fix="resume from the last checkpoint; if it happens again, look for the machine that differs",
            )


def measured_loss_sum(model: Model, part: Batch) -> float:
    """Sum of the token losses of one micro-batch, in nats; nothing is learned.

    The forward runs with gradients on, as in training, so that compiled layers are not compiled a second time.
    """
    hidden = forward(model, part).detach()
    return model.per_token_loss(hidden, _tensor(part.labels, hidden.device)).double().sum().item()


def forward(model: Model, part: Batch) -> Tensor:
    """Hidden states (n, T, hidden) of one micro-batch."""
    device = model.head_weight.device
    return model(
        _tensor(part.input_ids, device), _tensor(part.position_ids, device), _tensor(part.document_ids, device)
    )


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _not_finite(batch: Batch, loss: float, norm: float) -> TrainingFailed:
    return TrainingFailed(
        "training has diverged: the loss or its gradient is not finite",
        where=f"step {batch.step}, samples {batch.digest}",
        why=f"loss {loss}, gradient norm {norm}",
        fix="lower train.learning_rate; `sheaf trace --step` shows the step's texts; all checkpoints are older",
    )
