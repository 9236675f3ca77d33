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
from sheaf.model.decoder import Decoder
from sheaf.model.loss import next_token_loss, per_token_loss
from sheaf.order.loader import Batch, micro
from sheaf.parallel.data import Gradients
from sheaf.parallel.ranks import Ranks
from sheaf.train.optimizer import Optimizer, Update


@dataclass(frozen=True)
class StepResult:
    """Global figures of one step. positions: token positions that were computed, padding included."""

    loss: float
    gradient_norm: float
    positions: int
    stop: bool


class NotFinite(TrainingFailed):
    """The loss of a step or its gradient is not finite; `not_finite` finds out why."""

    def __init__(self, loss: float, norm: float) -> None:
        what = "training has diverged: the loss or its gradient is not finite"
        super().__init__(what, why=f"loss {loss}, gradient norm {norm}")
        self.loss, self.norm = loss, norm


class RanksDiffer(TrainingFailed):
    """The ranks no longer hold the same weights. From a checkpoint they may well again: memory fails once."""


class Learner:
    """model: on this rank's device, its layers possibly compiled. micro_samples: samples of one forward pass."""

    def __init__(self, model: Decoder, update: Update, clip: float, micro_samples: int, ranks: Ranks) -> None:
        self.model = model
        self.clip = clip
        self.micro_samples = micro_samples
        self.ranks = ranks
        self.update = update
        self.optimizer = Optimizer(model.named_parameters(), update)
        self.gradients = Gradients(model.parameters(), ranks.world)

    def step(self, batch: Batch, rate: float, stop: bool = False) -> StepResult:
        """Train on this rank's part of a global batch. stop: this rank's wish; any rank's wish is everyone's.

        Raises NotFinite, before the update, if the loss or the gradient is not finite. Called by every rank.
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
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(loss, norm)
        if norm > self.clip:
            self.gradients.scale(self.clip / norm)
        self.optimizer.step(rate)
        self.gradients.zero()
        return StepResult(loss, norm, int(positions), stops > 0)

    def loss_sum(self, part: Batch) -> Tensor:
        """fp32 sum of the token losses of one micro-batch."""
        hidden = forward(self.model, part)
        return next_token_loss(hidden, self.model.head_weight, _tensor(part.labels, hidden.device))

    def reset_optimizer(self) -> None:
        """Forget all momenta: the state before the first update."""
        self.optimizer = Optimizer(self.model.named_parameters(), self.update)

    def check_ranks_agree(self) -> None:
        """Raise RanksDiffer unless all ranks hold the same weights, bit for bit. Called by every rank."""
        total = sum(int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in self.model.parameters())
        if not self.ranks.agree(float(total % 2**52)):
            raise RanksDiffer(
                "the ranks no longer hold the same weights",
                why="an update was computed differently on one of them: unequal machines, or faulty memory",
                fix="resume from the last checkpoint; if it happens again, look for the machine that differs",
            )


def measured_loss_sum(model: Decoder, part: Batch) -> float:
    """Sum of the token losses of one micro-batch, in nats; nothing is learned.

    The forward runs with gradients on, as in training, so that compiled layers are not compiled a second time.
    """
    hidden = forward(model, part).detach()
    return per_token_loss(hidden, model.head_weight, _tensor(part.labels, hidden.device)).double().sum().item()


def forward(model: Decoder, part: Batch) -> Tensor:
    """Hidden states (n, T, hidden) of one micro-batch."""
    device = model.head_weight.device
    return model(
        _tensor(part.input_ids, device), _tensor(part.position_ids, device), _tensor(part.document_ids, device)
    )


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
