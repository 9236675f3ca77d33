"""What a block computes between its matrix products, and the loss of a chunk of logits: fused for a processor.

Letters: b batch, t positions, h key-value heads, g query heads a key-value head, e head dimension; n rows, d columns.

Written as chains of ATen operations these go through memory up to ten times, in fp32, and keep half of it for their
backward: on a processor with fast matrix products that was half of a step (`bench/step.py`). Here each is one pass of a
compiled kernel (`row_kernels.py`); rows go to threads (`workers.py`), and what is kept is the input, from which the
backward computes the rest again. All is computed in fp32 and rounded once.

Where a block is compiled, and on other devices, the same is said in plain operations: a compiler fuses them itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sheaf.model import row_kernels
from sheaf.model.operator import operator
from sheaf.model.workers import for_each

PIECE_ELEMENTS = 1 << 18  # rows of about so many are one thread's, whatever the number of threads


def rms_norm(x: Tensor, weight_d: Tensor, epsilon: float) -> Tensor:
    """x over the root of the mean of its squares, along the last dimension, times the weight; x's dtype."""
    if _fused(x):
        return _rms_norm(x, weight_d, epsilon)
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)
    return (x32 * scale * weight_d.float()).to(x.dtype)


def rotated(x_bthge: Tensor, cos_bte: Tensor, sin_bte: Tensor, scale: float = 1.0) -> Tensor:
    """(b, h, t, g, e): the pairs (i, i + e/2) turned by their angle, times the scale. cos, sin: (b, t, e/2)."""
    if _fused(x_bthge):
        return _rotate(x_bthge, cos_bte, sin_bte, scale, False)
    cos, sin = cos_bte[:, :, None, None] * scale, sin_bte[:, :, None, None] * scale
    first, second = x_bthge.float().chunk(2, dim=-1)
    both = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return both.to(x_bthge.dtype).transpose(1, 2)


def swiglu(x: Tensor) -> Tensor:
    """SiLU of the first half of the last dimension, times the second."""
    if _fused(x):
        return _swiglu(x)
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def cross_entropy_(logits_cv: Tensor, labels_c: Tensor, *, with_gradient: bool) -> Tensor | None:
    """(c,) fp32 losses of a processor's logits, 0 where the label is negative; with_gradient: the logits become their
    gradient. None if these are not for the kernel."""
    if not _fused(logits_cv) or not logits_cv.is_contiguous():
        return None
    if len(labels_c) and int(labels_c.max()) >= logits_cv.shape[1]:
        raise IndexError(f"label {int(labels_c.max())} lies outside a vocabulary of {logits_cv.shape[1]}")
    losses_c = torch.empty(labels_c.shape, dtype=torch.float32)
    logits, labels, losses = _bits(logits_cv), labels_c.contiguous().numpy(), losses_c.numpy()

    def lose(rows: slice) -> None:
        row_kernels.cross_entropy(logits[rows], labels[rows], with_gradient, losses[rows])

    for_each(lose, _pieces(logits))
    return losses_c


def _fused(x: Tensor) -> bool:
    known = x.dtype in (torch.bfloat16, torch.float32)
    return known and x.device.type == "cpu" and not torch.compiler.is_compiling()


@operator("sheaf::rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    x_nd, out_nd, weight_d = _rows(x), _rows(out), _weight(weight)

    def norm(rows: slice) -> None:
        row_kernels.norm(x_nd[rows], weight_d, epsilon, out_nd[rows])

    for_each(norm, _pieces(x_nd))
    return out


@operator("sheaf::rms_norm_backward")
def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype)
    x_nd, grad_nd, dx_nd, weight_d = _rows(x), _rows(grad), _rows(dx), _weight(weight)
    pieces = _pieces(x_nd)
    parts_kd = np.zeros((len(pieces), x.shape[-1]), np.float32)

    def differentiate(piece: tuple[int, slice]) -> None:
        number, rows = piece
        row_kernels.norm_backward(grad_nd[rows], x_nd[rows], weight_d, epsilon, dx_nd[rows], parts_kd[number])

    for_each(differentiate, list(enumerate(pieces)))
    return dx, torch.from_numpy(parts_kd).sum(0).to(weight.dtype)


@operator("sheaf::rotate")
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, scale: float, back: bool) -> Tensor:
    """back: from (b, h, t, g, e) to (b, t, h, g, e), the opposite turn; else the other way round."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.transpose(1, 2).shape, dtype=x.dtype)
    if not out.numel():
        return out
    x_bthge, out_bthge = (x.transpose(1, 2), out) if back else (x, out.transpose(1, 2))
    shape = (*x_bthge.shape[:2], x.shape[-1] // 2)  # a kernel looks at no bounds
    cos_bte, sin_bte = (cos * scale).expand(shape).numpy(), (sin * (-scale if back else scale)).expand(shape).numpy()
    x_flat, out_flat = _flat(x_bthge), _flat(out_bthge)

    def turn(b: int) -> None:
        here, there = x_flat[b * x_bthge.stride(0) :], out_flat[b * out_bthge.stride(0) :]
        strides = (np.array(y.stride()[1:4], np.int64) for y in (x_bthge, out_bthge))
        ours, theirs = strides
        row_kernels.rotate(here, ours, cos_bte[b], sin_bte[b], there, theirs, np.array(x_bthge.shape[1:], np.int64))

    for_each(turn, range(len(x)))
    return out


@operator("sheaf::swiglu")
def _swiglu(x: Tensor) -> Tensor:
    if x.shape[-1] % 2:
        raise ValueError(f"halves of {x.shape[-1]} columns")
    out = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype)
    x_nd, out_nd = _rows(x), _rows(out)
    for_each(lambda rows: row_kernels.swiglu(x_nd[rows], out_nd[rows]), _pieces(x_nd))
    return out


@operator("sheaf::swiglu_backward")
def _swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    dx = torch.empty(x.shape, dtype=x.dtype)
    x_nd, grad_nd, dx_nd = _rows(x), _rows(grad), _rows(dx)
    for_each(lambda rows: row_kernels.swiglu_backward(grad_nd[rows], x_nd[rows], dx_nd[rows]), _pieces(x_nd))
    return dx


def _bits(x: Tensor) -> NDArray[Any]:
    """The same memory, as unsigned numbers of as many bits."""
    two = x.element_size() == 2
    return x.detach().view(torch.int16 if two else torch.int32).numpy().view(np.uint16 if two else np.uint32)


def _rows(x: Tensor) -> NDArray[Any]:
    return _bits(x.contiguous().view(-1, x.shape[-1]))


def _flat(x: Tensor) -> NDArray[Any]:
    """All from the first element to the last, with what lies between them."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return _bits(x.detach().as_strided((span,), (1,)))


def _weight(weight: Tensor) -> NDArray[np.float32]:
    return weight.detach().float().contiguous().numpy()


def _pieces(x_nd: NDArray[Any]) -> list[slice]:
    rows = max(1, PIECE_ELEMENTS // max(1, x_nd.shape[1]))
    return [slice(start, min(start + rows, len(x_nd))) for start in range(0, len(x_nd), rows)]


@_rms_norm.register_fake
def _norm_shape(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@_rms_norm_backward.register_fake
def _norm_backward_shape(grad: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


@_rotate.register_fake
def _rotate_shape(x: Tensor, cos: Tensor, sin: Tensor, scale: float, back: bool) -> Tensor:
    return torch.empty(x.transpose(1, 2).shape, dtype=x.dtype, device=x.device)


@_swiglu.register_fake
def _swiglu_shape(x: Tensor) -> Tensor:
    return torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype, device=x.device)


@_swiglu_backward.register_fake
def _swiglu_backward_shape(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep_norm(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    x, weight, ctx.epsilon = inputs
    ctx.save_for_backward(x, weight)


def _norm_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight = ctx.saved_tensors
    return *_rms_norm_backward(grad, x, weight, ctx.epsilon), None


def _keep_turn(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float, bool], output: Tensor) -> None:
    _, cos, sin, ctx.scale, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _turn_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    cos, sin = ctx.saved_tensors
    return _rotate(grad, cos, sin, ctx.scale, not ctx.back), None, None, None, None


def _keep_input(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradient(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return _swiglu_backward(grad, x)


_rms_norm.register_autograd(_norm_gradient, setup_context=_keep_norm)
_rotate.register_autograd(_turn_gradient, setup_context=_keep_turn)
_swiglu.register_autograd(_swiglu_gradient, setup_context=_keep_input)
_rms_norm_backward.register_no_second_derivative()
_swiglu_backward.register_no_second_derivative()
