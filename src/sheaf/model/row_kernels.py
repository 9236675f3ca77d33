"""Kernels of a block's pointwise parts and of the loss, for a processor: one pass over memory, in fp32 inside.

Tensors come as their bits: uint16 for bf16, uint32 for fp32. A row is widened into a scratch that stays in the first
cache, computed there, and rounded once, to nearest, ties to even, as torch rounds. Sums may be taken in any order that
suits the processor's vectors (`fast_kernel`), the same on each call. What is not a number stays so.

Cost: the memory that is read and written, some 10 GB/s a core.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sheaf.kernel import fast_kernel

Bits = NDArray[np.uint16] | NDArray[np.uint32]
F32 = NDArray[np.float32]

_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
_MAX = np.float32(3.4028235e38)
LANES = 64
_ROUND, _BIT, _SIXTEEN = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)
_NONE, _MINUS_INFINITE = np.uint32(0), np.uint32(0xFF800000)
_SIGNLESS, _INFINITE, _NAN = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000), np.uint32(0x7FC0)
# exp(x) = 2^k · exp(r), |r| ≤ ln(2)/2, by the polynomial of Cephes' expf (Moshier), whose error is 2e-7 of the value.
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LEAST_EXPONENT, _MOST_EXPONENT = np.float32(-87.0), np.float32(88.0)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@fast_kernel
def _widen(row: Bits, bits: NDArray[np.uint32]) -> None:
    """Into a scratch whose view as float32 holds the values."""
    if row.itemsize == 2:
        for j in range(len(row)):
            bits[j] = np.uint32(row[j]) << _SIXTEEN
    else:
        for j in range(len(row)):
            bits[j] = np.uint32(row[j])


@fast_kernel
def _narrow(bits: NDArray[np.uint32], row: Bits) -> None:
    """Out of the scratch, rounded to the row's type."""
    if row.itemsize == 2:
        for j in range(len(row)):
            u = bits[j]
            near = (u + _ROUND + ((u >> _SIXTEEN) & _BIT)) >> _SIXTEEN
            row[j] = _NAN if (u & _SIGNLESS) > _INFINITE else near
    else:
        for j in range(len(row)):
            row[j] = bits[j]


@fast_kernel
def _exp(v: F32, exponent: NDArray[np.int32]) -> None:
    """v becomes the factors, and exponent the bits of the powers of two, whose products are the exponentials."""
    for j in range(len(v)):
        x = v[j]
        x = x if x > _LEAST_EXPONENT else _LEAST_EXPONENT
        x = x if x < _MOST_EXPONENT else _MOST_EXPONENT
        y = x * _LOG2E
        k = np.int32(y + (_HALF if y >= _ZERO else -_HALF))
        whole = np.float32(k)
        r = x - whole * _LN2_HIGH
        r = r - whole * _LN2_LOW
        p = _P0
        p = p * r + _P1
        p = p * r + _P2
        p = p * r + _P3
        p = p * r + _P4
        p = p * r + _P5
        v[j] = p * r * r + r + _ONE
        exponent[j] = np.int32((k + _BIAS) << _MANTISSA)


@fast_kernel
def _largest(v: F32) -> np.float32:
    lanes = np.full(LANES, -_MAX, np.float32)
    for begin in range(0, len(v) - LANES + 1, LANES):
        some = v[begin : begin + LANES]
        for j in range(LANES):
            lanes[j] = some[j] if some[j] > lanes[j] else lanes[j]
    most = -_MAX
    for j in range(len(v) - len(v) % LANES, len(v)):
        most = v[j] if v[j] > most else most
    for j in range(LANES):
        most = lanes[j] if lanes[j] > most else most
    return most


@fast_kernel
def norm(x_nd: Bits, weight_d: F32, epsilon: float, out_nd: Bits) -> None:
    """Each row over the root of the mean of its squares, times the weight."""
    n, d = x_nd.shape
    bits = np.empty(d, np.uint32)
    v = bits.view(np.float32)
    for i in range(n):
        _widen(x_nd[i], bits)
        squares = _ZERO
        for j in range(d):
            squares += v[j] * v[j]
        scale = np.float32(1.0 / math.sqrt(squares / d + epsilon))
        for j in range(d):
            v[j] = v[j] * scale * weight_d[j]
        _narrow(bits, out_nd[i])


@fast_kernel
def norm_backward(grad_nd: Bits, x_nd: Bits, weight_d: F32, epsilon: float, dx_nd: Bits, dw_d: F32) -> None:
    """With y = x/rms: dw += Σ g·y over rows, dx = (g·w − y·mean(g·w·y))/rms."""
    n, d = x_nd.shape
    bits, grad_bits = np.empty(d, np.uint32), np.empty(d, np.uint32)
    y, g = bits.view(np.float32), grad_bits.view(np.float32)
    for i in range(n):
        _widen(x_nd[i], bits)
        _widen(grad_nd[i], grad_bits)
        squares = _ZERO
        for j in range(d):
            squares += y[j] * y[j]
        scale = np.float32(1.0 / math.sqrt(squares / d + epsilon))
        along = _ZERO
        for j in range(d):
            one = y[j] * scale
            dw_d[j] += g[j] * one
            weighted = g[j] * weight_d[j]
            along += weighted * one
            y[j], g[j] = one, weighted
        along = along / np.float32(d)
        for j in range(d):
            g[j] = (g[j] - y[j] * along) * scale
        _narrow(grad_bits, dx_nd[i])


@fast_kernel
def rotate(
    x: Bits, x_strides: NDArray[np.int64], cos_te: F32, sin_te: F32, out: Bits, out_strides: NDArray[np.int64],
    shape: NDArray[np.int64],
) -> None:  # fmt: skip
    """The pairs (i, i + e/2) of each head turned by its position's angle. x, out: flat from their first element on;
    strides, shape: of positions, key-value heads, query heads a key-value head, and the head's size, which lies
    together."""
    positions, heads, group, size = shape
    half = size // 2
    bits, turned_bits = np.empty(size, np.uint32), np.empty(size, np.uint32)
    v, turned = bits.view(np.float32), turned_bits.view(np.float32)
    for t in range(positions):
        cos, sin = cos_te[t], sin_te[t]
        for h in range(heads):
            for g in range(group):
                begin = t * x_strides[0] + h * x_strides[1] + g * x_strides[2]
                _widen(x[begin : begin + size], bits)
                for j in range(half):
                    turned[j] = v[j] * cos[j] - v[half + j] * sin[j]
                for j in range(half):
                    turned[half + j] = v[half + j] * cos[j] + v[j] * sin[j]
                begin = t * out_strides[0] + h * out_strides[1] + g * out_strides[2]
                _narrow(turned_bits, out[begin : begin + size])


@fast_kernel
def swiglu(x_nd: Bits, out_nd: Bits) -> None:
    """SiLU of a row's first half times its second: a·u/(1 + exp(−a))."""
    half = out_nd.shape[1]
    a_bits, u_bits, exponent = np.empty(half, np.uint32), np.empty(half, np.uint32), np.empty(half, np.int32)
    a, u, power, e = a_bits.view(np.float32), u_bits.view(np.float32), exponent.view(np.float32), np.empty_like(a_bits)
    factor = e.view(np.float32)
    for i in range(len(x_nd)):
        _widen(x_nd[i, :half], a_bits)
        _widen(x_nd[i, half:], u_bits)
        for j in range(half):
            factor[j] = -a[j]
        _exp(factor, exponent)
        for j in range(half):
            a[j] = a[j] * u[j] / (_ONE + factor[j] * power[j])
        _narrow(a_bits, out_nd[i])


@fast_kernel
def swiglu_backward(grad_nh: Bits, x_nd: Bits, dx_nd: Bits) -> None:
    """With s = 1/(1 + exp(−a)): du = g·a·s, da = g·u·s·(1 + a·(1 − s))."""
    half = grad_nh.shape[1]
    a_bits, u_bits, g_bits = np.empty(half, np.uint32), np.empty(half, np.uint32), np.empty(half, np.uint32)
    exponent, e = np.empty(half, np.int32), np.empty(half, np.uint32)
    a, u, g = a_bits.view(np.float32), u_bits.view(np.float32), g_bits.view(np.float32)
    power, factor = exponent.view(np.float32), e.view(np.float32)
    for i in range(len(x_nd)):
        _widen(x_nd[i, :half], a_bits)
        _widen(x_nd[i, half:], u_bits)
        _widen(grad_nh[i], g_bits)
        for j in range(half):
            factor[j] = -a[j]
        _exp(factor, exponent)
        # One array is written a loop: the compiler asks at run time whether arrays overlap, and gives up on too many.
        for j in range(half):
            factor[j] = _ONE / (_ONE + factor[j] * power[j])  # s
        for j in range(half):
            power[j] = a[j] * factor[j]
        for j in range(half):
            a[j] = g[j] * u[j] * (factor[j] + power[j] * (_ONE - factor[j]))
        for j in range(half):
            u[j] = g[j] * power[j]
        _narrow(a_bits, dx_nd[i, :half])
        _narrow(u_bits, dx_nd[i, half:])


@fast_kernel
def cross_entropy(logits_cv: Bits, labels_c: NDArray[np.int64], gradient: bool, losses_c: F32) -> None:
    """The loss of each row in nats, 0 for a negative label; gradient: the logits become softmax − one-hot, or 0."""
    size = logits_cv.shape[1]
    bits, exponent = np.empty(size, np.uint32), np.empty(size, np.int32)
    v, power = bits.view(np.float32), exponent.view(np.float32)
    for i in range(len(logits_cv)):
        row, label = logits_cv[i], labels_c[i]
        if label < 0:
            losses_c[i] = _ZERO
            if gradient:
                row[:] = 0
            continue
        _widen(row, bits)
        odd = np.uint32(0)
        for j in range(size):  # not a number, or infinite: so is the loss
            odd += _BIT if (bits[j] & _SIGNLESS) >= _INFINITE and bits[j] != _MINUS_INFINITE else _NONE
        most = _largest(v)
        target = v[label] - most
        for j in range(size):
            v[j] = v[j] - most
        _exp(v, exponent)
        total = _ZERO
        for j in range(size):
            v[j] = v[j] * power[j]
            total += v[j]
        losses_c[i] = np.float32(math.nan) if odd else np.float32(math.log(total)) - target
        if gradient:
            share = np.float32(math.nan) if odd else _ONE / total
            for j in range(size):
                v[j] = v[j] * share
            v[label] -= _ONE
            _narrow(bits, row)
