"""Next-token cross-entropy without the logits of a batch: head, softmax and their gradients, chunk by chunk.

Letters: n tokens (b·t), d hidden size, v vocabulary, c tokens of a chunk.

Forward computes each chunk's logits, its loss, and at once its gradients for hidden states and head, then drops the
logits; backward only scales them by the incoming scalar. So 3 matrix products a chunk, as in the plain way, and no
recomputation. Memory: one chunk's logits (2048 × v in the compute dtype) and the head's gradient in fp32, where the
plain way holds the logits of all tokens two to three times. On a processor a chunk's softmax is a kernel of one pass.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sheaf.model.pointwise import cross_entropy_

IGNORE = -100
CHUNK_TOKENS = 2048


def next_token_loss(
    hidden_btd: Tensor, head_weight_vd: Tensor, labels_bt: Tensor, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """fp32 scalar: the sum of the cross-entropy over the labels that are not −100, in nats."""
    return _NextTokenLoss.apply(hidden_btd, head_weight_vd, labels_bt, chunk_tokens)


@torch.no_grad()
def per_token_loss(hidden_btd: Tensor, head_weight_vd: Tensor, labels_bt: Tensor) -> Tensor:
    """fp32 (b, t): cross-entropy of each label in nats, 0 where the label is −100. No gradient."""
    hidden_nd, labels_n = hidden_btd.flatten(0, 1), labels_bt.flatten()
    weight_vd = head_weight_vd.to(hidden_btd.dtype)
    losses_n = torch.empty(labels_n.shape, dtype=torch.float32, device=hidden_btd.device)
    for chunk in _spans(labels_n.numel(), CHUNK_TOKENS):
        losses_n[chunk] = _losses(hidden_nd[chunk] @ weight_vd.T, labels_n[chunk], with_gradient=False)
    return losses_n.view(labels_bt.shape)


class _NextTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_btd: Tensor, head_vd: Tensor, labels_bt: Tensor, chunk_tokens: int) -> Tensor:
        return loss_in_chunks(ctx, hidden_btd, head_vd, labels_bt, _losses, chunk_tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] untyped
        return *scaled_gradients(ctx, grads[0]), None, None


class Losses(Protocol):
    """(c,) fp32 losses of the logits of a chunk; with_gradient: the logits become their gradient."""

    def __call__(self, logits_cv: Tensor, labels_c: Tensor, *, with_gradient: bool) -> Tensor: ...


def loss_in_chunks(
    ctx: Any, hidden_btd: Tensor, head_vd: Tensor, labels_bt: Tensor, losses: Losses, chunk_tokens: int = CHUNK_TOKENS
) -> Tensor:
    """The forward of an autograd function: the sum of the losses; what `scaled_gradients` needs is kept in ctx."""
    hidden_nd, labels_n = hidden_btd.flatten(0, 1), labels_bt.flatten()
    weight_vd = head_vd.to(hidden_btd.dtype)
    wanted, head_learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[1], ctx.needs_input_grad[1]
    d_hidden_nd = torch.empty_like(hidden_nd) if wanted else None
    d_head_vd: Tensor | None = None
    total = torch.zeros((), dtype=torch.float32, device=hidden_btd.device)
    for chunk in _spans(labels_n.numel(), chunk_tokens):
        logits_cv = hidden_nd[chunk] @ weight_vd.T
        total += losses(logits_cv, labels_n[chunk], with_gradient=wanted).sum()
        if d_hidden_nd is None:
            continue
        gradient_cv = logits_cv
        d_hidden_nd[chunk] = gradient_cv @ weight_vd
        if not head_learns:
            continue
        part_vd = gradient_cv.T @ hidden_nd[chunk]
        d_head_vd = part_vd.float() if d_head_vd is None else d_head_vd.add_(part_vd)
    if d_hidden_nd is not None:
        ctx.save_for_backward(d_hidden_nd.view_as(hidden_btd), d_head_vd)
    return total


def scaled_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of hidden states and head, for the gradient of the loss."""
    d_hidden_btd, d_head_vd = ctx.saved_tensors
    # fp32 scalar times bf16 tensor: the product is taken in fp32 and rounded once.
    return d_hidden_btd * gradient, None if d_head_vd is None else d_head_vd * gradient


def _losses(logits_cv: Tensor, labels_c: Tensor, *, with_gradient: bool) -> Tensor:
    """Cross-entropy of each row, fp32; with_gradient: the logits become softmax − one-hot (0 if ignored)."""
    found_c = cross_entropy_(logits_cv, labels_c, with_gradient=with_gradient)
    if found_c is not None:
        return found_c
    valid_c, target_c1 = labels_c != IGNORE, labels_c.clamp_min(0)[:, None]
    log_p_cv = torch.log_softmax(logits_cv.float(), dim=-1)
    losses_c = log_p_cv.gather(1, target_c1)[:, 0].neg() * valid_c
    if with_gradient:
        gradient_cv = log_p_cv.exp_()
        gradient_cv.scatter_add_(1, target_c1, torch.full_like(target_c1, -1, dtype=torch.float32))
        logits_cv.copy_(gradient_cv).index_fill_(0, (~valid_c).nonzero()[:, 0], 0)
    return losses_c


def _spans(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
