"""What a block computes between its matrix products, fused for eager execution on a CPU: norm, rotation, SwiGLU.

Letters: b batch, t positions, h key-value heads, g query heads a key-value head, e head dimension; n rows, d columns.

Written as a chain of ATen operations each of these goes through memory some ten times, in fp32, and keeps half of it
for its backward: on a processor with fast matrix products that is more than half of a step. Here a block of rows that
stays in a core's cache goes through all of the chain, blocks go to threads (`workers.py`), and what is kept is the
input, from which the backward computes the rest again. All is computed in fp32 and rounded once.

Where a block is compiled, and on other devices, the same is said in plain operations: a compiler fuses them itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sheaf.model.operator import operator
from sheaf.model.workers import for_each

BLOCK_ELEMENTS = 1 << 17


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


def _fused(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@operator("sheaf::rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x_nd, weight_d = x.flatten(0, -2), weight.float()
    out_nd = torch.empty(x_nd.shape, dtype=x.dtype)

    def norm(rows: slice) -> None:
        x32 = x_nd[rows].float()
        out_nd[rows] = (x32 * _scale(x32, epsilon)).mul_(weight_d)

    for_each(norm, _blocks(x_nd))
    return out_nd.view(x.shape)


@operator("sheaf::rms_norm_backward")
def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """With y = x/rms: dw = Σ g·y over rows, dx = (g·w − y·mean(g·w·y))/rms."""
    x_nd, grad_nd, weight_d = x.flatten(0, -2), grad.flatten(0, -2), weight.float()
    dx_nd, blocks = torch.empty(x_nd.shape, dtype=x.dtype), _blocks(x_nd)
    parts_kd = torch.empty(len(blocks), x.shape[-1])

    def differentiate(piece: tuple[int, slice]) -> None:
        number, rows = piece
        x32, grad32 = x_nd[rows].float(), grad_nd[rows].float()
        scale = _scale(x32, epsilon)
        y = x32 * scale
        torch.sum(grad32 * y, 0, out=parts_kd[number])
        weighted = grad32 * weight_d
        weighted -= y * (weighted * y).mean(-1, keepdim=True)
        dx_nd[rows] = weighted.mul_(scale)

    for_each(differentiate, list(enumerate(blocks)))
    return dx_nd.view(x.shape), parts_kd.sum(0).to(weight.dtype)


@operator("sheaf::rotate")
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, scale: float, back: bool) -> Tensor:
    """back: from (b, h, t, g, e) to (b, t, h, g, e), the opposite turn; else the other way round."""
    out = torch.empty(x.transpose(1, 2).shape, dtype=x.dtype)
    x_bthge, out_bthge = (x.transpose(1, 2), out) if back else (x, out.transpose(1, 2))
    half = x.shape[-1] // 2
    cos, sin = cos * scale, sin * (-scale if back else scale)

    def turn(piece: tuple[int, slice]) -> None:
        b, rows = piece
        first, second = x_bthge[b, rows].float().split(half, -1)
        cos_re, sin_re = cos[b, rows, None, None], sin[b, rows, None, None]
        to = out_bthge[b, rows]
        to[..., :half] = (first * cos_re).addcmul_(second, sin_re, value=-1)
        to[..., half:] = (second * cos_re).addcmul_(first, sin_re)

    for_each(turn, [(b, rows) for b in range(len(x)) for rows in _blocks(x_bthge[b].flatten(1))])
    return out


@operator("sheaf::swiglu")
def _swiglu(x: Tensor) -> Tensor:
    x_nd = x.flatten(0, -2)
    half = x.shape[-1] // 2
    out_nd = torch.empty(len(x_nd), half, dtype=x.dtype)

    def multiply(rows: slice) -> None:
        gate, up = x_nd[rows].split(half, -1)
        torch.mul(functional.silu(gate), up, out=out_nd[rows])

    for_each(multiply, _blocks(x_nd))
    return out_nd.view(*x.shape[:-1], half)


@operator("sheaf::swiglu_backward")
def _swiglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    x_nd, grad_nd = x.flatten(0, -2), grad.flatten(0, -2)
    half = x.shape[-1] // 2
    dx_nd = torch.empty(x_nd.shape, dtype=x.dtype)

    def differentiate(rows: slice) -> None:
        gate, up = x_nd[rows].split(half, -1)
        d_gate, d_up = dx_nd[rows].split(half, -1)
        torch.mul(functional.silu(gate), grad_nd[rows], out=d_up)
        torch.ops.aten.silu_backward.grad_input(grad_nd[rows] * up, gate, grad_input=d_gate)

    for_each(differentiate, _blocks(x_nd))
    return dx_nd.view(x.shape)


def _scale(x32: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)


def _blocks(x_nd: Tensor) -> list[slice]:
    """Rows that are computed together, the same however many threads there are."""
    rows = max(1, BLOCK_ELEMENTS // max(1, x_nd.shape[1]))
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
