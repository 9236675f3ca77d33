"""The chunked loss is cross-entropy, in value and in both gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sheaf.model.loss import next_token_loss, per_token_loss


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 37, 24, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(211, 24, generator=generator).requires_grad_()
    labels = torch.randint(0, 211, (3, 37), generator=generator)
    labels[0, ::5] = -100
    return hidden, head, labels


def reference(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = hidden.float() @ head.to(hidden.dtype).float().T
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)


@pytest.mark.parametrize("chunk", [1, 16, 37, 2048])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_chunked_loss_equals_cross_entropy(chunk: int, dtype: torch.dtype, tolerance: float) -> None:
    hidden, head, labels = inputs(dtype)
    loss = next_token_loss(hidden, head, labels, chunk)
    expected = reference(hidden, head, labels).sum()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    ours = torch.autograd.grad(loss * 0.37, (hidden, head))
    theirs = torch.autograd.grad(expected * 0.37, (hidden, head))
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_per_token_losses_are_those_of_each_label_and_zero_where_ignored() -> None:
    hidden, head, labels = inputs(torch.float32)
    losses = per_token_loss(hidden, head, labels)
    assert losses.shape == labels.shape and not losses.requires_grad
    assert torch.allclose(losses.flatten(), reference(hidden, head, labels), atol=1e-5)
    assert (losses[labels == -100] == 0).all()


def test_a_batch_without_labels_has_loss_and_gradients_zero() -> None:
    hidden, head, labels = inputs(torch.float32)
    loss = next_token_loss(hidden, head, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any() and not head.grad.any()


def test_an_improbable_label_costs_its_logit_and_not_infinity() -> None:
    head = torch.tensor([[1.0], [-1.0]])
    loss = next_token_loss(torch.tensor([[[200.0]]]), head, torch.tensor([[1]]))
    assert loss.item() == pytest.approx(400.0)


def test_evaluation_computes_no_gradients() -> None:
    hidden, head, labels = inputs(torch.float32)
    with torch.no_grad():
        loss = next_token_loss(hidden, head, labels)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(reference(hidden, head, labels).sum().item(), rel=1e-5)
