"""Next-token loss where each tensor rank has its own tokens of the vocabulary.

As `model/loss.py`: head, softmax and their gradients by chunks, the logits of a batch never exist. Here a rank computes
the logits of its tokens only, and three numbers a position are put together over ranks: the largest logit, the sum of
exponentials, and the target's logit (Shoeybi et al. 2019, section 3). Positions come divided over the ranks, as the
blocks hold them; they are gathered first, and the gradient is scattered back.

Letters: n positions, d hidden size, v this rank's tokens, c positions of a chunk. Cost: the hidden states once through
every rank each way, and 3 fp32 numbers a position. All ranks return the same loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sheaf.model.loss import IGNORE, loss_in_chunks, scaled_gradients
from sheaf.model.pieces import even_range
from sheaf.parallel.collectives import gather, use, waiting
from sheaf.parallel.mesh import Group

POSITIONS = 1


class Vocabulary:
    """The tokens of one tensor rank."""

    def __init__(self, group: Group, vocab_size: int) -> None:
        self.group = group
        self.name = use(group)
        self.first, self.end = even_range(vocab_size, group.size, group.rank)

    @property
    def is_whole(self) -> bool:
        return self.group.size == 1

    def next_token_loss(self, hidden_btd: Tensor, head_vd: Tensor, labels_bt: Tensor) -> Tensor:
        """fp32 scalar, the same on all ranks: the sum of the cross-entropy over the labels that are not −100, in nats.

        hidden_btd: this rank's stretch of the positions. labels_bt: of all positions.
        """
        whole_btd = gather(hidden_btd, POSITIONS, self.name)
        return _Loss.apply(whole_btd, head_vd, labels_bt, self)

    def reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        with waiting(2 * values.nbytes * (self.group.size - 1) // self.group.size):
            dist.all_reduce(values, op=operation, group=self.group.handle)
        return values


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_btd: Tensor, head_vd: Tensor, labels_bt: Tensor, mine: Vocabulary) -> Tensor:
        return loss_in_chunks(ctx, hidden_btd, head_vd, labels_bt, partial(_losses, mine))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] untyped
        # Of the hidden states each rank has a part of the sum: the backward of `gather` adds them up.
        return *scaled_gradients(ctx, grads[0]), None, None


def _losses(mine: Vocabulary, logits_cv: Tensor, labels_c: Tensor, *, with_gradient: bool) -> Tensor:
    """fp32 (c,) losses; with_gradient: the logits of this rank's tokens become softmax − one-hot (0 if ignored)."""
    logits_cv32 = logits_cv.float()
    largest_c = mine.reduce(logits_cv32.amax(1), dist.ReduceOp.MAX)
    exponentials_cv = (logits_cv32 - largest_c[:, None]).exp_()
    here_c = (labels_c >= mine.first) & (labels_c < mine.end)
    target_c1 = (labels_c - mine.first).masked_fill(~here_c, 0)[:, None]
    found_c = (logits_cv32.gather(1, target_c1)[:, 0] - largest_c) * here_c
    sums_2c = mine.reduce(torch.stack([exponentials_cv.sum(1), found_c]), dist.ReduceOp.SUM)
    valid_c = labels_c != IGNORE
    losses_c = (sums_2c[0].log() - sums_2c[1]) * valid_c
    if with_gradient:
        gradient_cv = exponentials_cv.div_(sums_2c[0][:, None])
        gradient_cv.scatter_add_(1, target_c1, -here_c[:, None].float())
        logits_cv.copy_(gradient_cv.mul_(valid_c[:, None]))
    return losses_c
