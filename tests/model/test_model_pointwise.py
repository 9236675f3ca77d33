"""Norm, rotation and SwiGLU by blocks of rows are what the plain operations say, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sheaf.model import pointwise
from sheaf.model.attention import attend
from sheaf.model.loss import next_token_loss
from sheaf.train.setup import exact

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
Case = tuple[Callable[..., Tensor], list[Tensor]]


def cases(dtype: torch.dtype) -> dict[str, Case]:
    """Several blocks of each, the last one smaller; inputs that are parts of a larger tensor, as in a block."""
    dice = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice)

    angles = some(2, 300, 8)
    qkv = some(2, 300, 3 * 4 * 2 * 16).to(dtype)
    q = qkv[..., : 4 * 2 * 16].unflatten(-1, (4, 2, 16))
    return {
        "norm": (lambda x, w: pointwise.rms_norm(x, w, 1e-5), [some(2, 300, 96).to(dtype), some(96)]),
        "norm of heads": (lambda x, w: pointwise.rms_norm(x, w, 1e-5), [q, some(16)]),
        "rotation": (lambda x: pointwise.rotated(x, angles.cos(), angles.sin(), 0.25), [q]),
        "swiglu": (pointwise.swiglu, [some(2, 300, 192).to(dtype)]),
    }


def outcome(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    views = [leaf if x.is_contiguous() else torch.cat((leaf, leaf), -1)[..., : x.shape[-1]] for leaf, x in
             zip(leaves, inputs, strict=True)]  # fmt: skip
    y = function(*views)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", list(cases(torch.float32)))
def test_blocks_of_rows_are_what_plain_operations_say(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(pointwise, "PIECE_ELEMENTS", 7000)
    function, inputs = cases(dtype)[name]
    fused = outcome(function, inputs)
    monkeypatch.setattr(pointwise, "_fused", lambda _: False)
    plain = outcome(function, inputs)
    assert len(fused) == len(plain) == 1 + len(inputs)
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        torch.testing.assert_close(
            ours.float(), theirs.float(), rtol=tolerance, atol=tolerance * float(theirs.abs().max())
        )


@pytest.mark.parametrize("name", list(cases(torch.float32)))
def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(pointwise, "PIECE_ELEMENTS", 7000)
    function, inputs = cases(torch.bfloat16)[name]
    found: list[list[Tensor]] = []
    for threads in (1, 2):
        with exact(threads):
            found.append(outcome(function, inputs))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", list(cases(torch.float32)))
def test_only_inputs_are_kept_for_the_backward(name: str) -> None:
    function, inputs = cases(torch.bfloat16)[name]
    leaves = [x.clone().requires_grad_() for x in inputs]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        function(*leaves)
    assert sum(x.nbytes for x in kept) <= sum(x.nbytes for x in leaves) + 2 * 4 * 2 * 300 * 8  # and the angles


def test_the_operators_are_sound() -> None:
    """What autograd, fake tensors and torch.compile ask of an operator."""
    known = {name: [x.clone().requires_grad_() for x in inputs] for name, (_, inputs) in cases(torch.float32).items()}
    angles, ours = torch.rand(2, 300, 8), torch.ops.sheaf
    torch.library.opcheck(ours.rms_norm.default, (*known["norm"], 1e-5))
    torch.library.opcheck(ours.rotate.default, (*known["rotation"], angles.cos(), angles.sin(), 0.5, False))
    torch.library.opcheck(ours.swiglu.default, (*known["swiglu"],))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(odd: float, dtype: torch.dtype) -> None:
    x = torch.ones(3, 192, dtype=dtype)
    x[1, 5] = odd
    for y in (pointwise.rms_norm(x, torch.ones(192), 1e-5), pointwise.swiglu(x)):
        assert y[[0, 2]].isfinite().all() and not y[1].isfinite().all()
    labels = torch.tensor([3, 7, -100])
    losses = pointwise.cross_entropy_(x.clone(), labels, with_gradient=False)
    plain = torch.nn.functional.cross_entropy(x.float(), labels, reduction="none")
    assert losses is not None
    torch.testing.assert_close(losses, plain, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("size", [1, 63, 64, 300])
def test_cross_entropy_is_that_of_torch_in_value_and_gradient(size: int, dtype: torch.dtype, tolerance: float) -> None:
    dice = torch.Generator().manual_seed(size)
    logits = (40 * torch.randn(50, size, generator=dice)).to(dtype)  # improbable labels too: e⁻¹²⁰ and less
    labels = torch.randint(0, size, (50,), generator=dice)
    labels[::7] = -100
    known = logits.float().requires_grad_()
    plain = torch.nn.functional.cross_entropy(known, labels, reduction="none")
    plain.sum().backward()
    losses = pointwise.cross_entropy_(logits, labels, with_gradient=True)
    assert losses is not None and known.grad is not None
    torch.testing.assert_close(losses, plain.detach(), rtol=2e-6, atol=2e-5)
    torch.testing.assert_close(logits.float(), known.grad, rtol=tolerance, atol=2e-7)


def test_a_label_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(IndexError, match="label 10 lies outside a vocabulary of 10"):
        pointwise.cross_entropy_(torch.randn(3, 10), torch.tensor([1, 10, -100]), with_gradient=True)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_nothing_turned_is_nothing(shape: tuple[int, int]) -> None:
    q = torch.empty(*shape, 2, 1, 8).requires_grad_()
    angles = torch.empty(*shape, 4)
    y = pointwise.rotated(q, angles, angles)
    y.sum().backward()
    assert y.shape == (shape[0], 2, shape[1], 1, 8) and q.grad is not None and q.grad.shape == q.shape


def test_angles_of_one_row_turn_all_rows_and_others_are_refused() -> None:
    q, angles = torch.randn(2, 3, 1, 1, 8), torch.rand(1, 3, 4)
    all_rows = pointwise.rotated(q, angles.cos().expand(2, 3, 4), angles.sin().expand(2, 3, 4))
    assert torch.equal(pointwise.rotated(q, angles.cos(), angles.sin()), all_rows)
    with pytest.raises(RuntimeError):
        pointwise.rotated(q, angles[:, :2].cos(), angles[:, :2].sin())


def attention(x: Tensor) -> Tensor:
    q = x.view(1, 1, 3, 1, 8)
    return attend(q, q[:, :, :, 0], q[:, :, :, 0], torch.zeros(1, 3, dtype=torch.int64))


def loss(x: Tensor) -> Tensor:
    return next_token_loss(x[None], torch.eye(16, 8), torch.arange(3)[None])


@pytest.mark.parametrize(
    "of", [lambda x: pointwise.rms_norm(x, torch.ones(8), 1e-6), pointwise.swiglu, attention, loss]
)
def test_a_second_derivative_is_refused_and_not_wrong(of: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    (first,) = torch.autograd.grad(of(x).square().sum(), x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"create_graph|once_differentiable"):
        first.sum().backward()
