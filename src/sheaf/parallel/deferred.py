"""Weights' gradients that wait: a backward pass gives its input's gradient at once, the weights' when asked to.

The projections of a stage compute x·Wᵀ; backward needs dy·W, for which the stage before waits, and dyᵀ·x, for which
nobody does. Inside the `with` block of a backward the second is put on a list (x and dy are kept), and `run` works the
oldest backward's list off. Used by the zero-bubble schedule (Qi et al. 2023). Same products, same sums, in fp32 on the
masters; memory: x and dy of the projections until then. Not under torch.compile, which would not keep them apart.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sheaf.model.decoder import Decoder, Weights, joint_linear

Due = tuple[Tensor, Tensor, tuple[Weights, ...]]  # x (n, in), dy (n, out), and whose product this was


class DeferredWeights:
    """Of one stage. `with` around a backward: put off; `run`: do the oldest one's."""

    def __init__(self, model: Decoder) -> None:
        self._due: deque[list[Due]] = deque()
        for _, block in model.model.held():
            block.self_attn.linear = self._linear
            block.mlp.linear = self._linear

    def __enter__(self) -> None:
        self._due.append([])

    def __exit__(self, *_: object) -> None:
        return

    @torch.no_grad()
    def run(self) -> None:
        for x_ni, dy_no, parts in self._due.popleft():
            gradient_oi = dy_no.T @ x_ni
            sums_o = dy_no.sum(0, dtype=torch.float32)
            start = 0
            for part in parts:
                end = start + part.weight.shape[0]
                _add(part.weight, gradient_oi[start:end])
                if part.bias is not None:
                    _add(part.bias, sums_o[start:end])
                start = end

    def _linear(self, x: Tensor, *parts: Weights) -> Tensor:
        # A product that does not learn as one (parts of it are frozen, or have adapters) is autograd's; so is one whose
        # input has no gradient, since the backward would not come here.
        if x.requires_grad and all(_learns(part) for part in parts):
            return _Linear.apply(x, self._due, parts)
        return joint_linear(x, *parts)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, due: deque[list[Due]], parts: tuple[Weights, ...]) -> Tensor:
        weight_oi = torch.cat([part.weight.to(x.dtype) for part in parts])
        biases = [part.bias.to(x.dtype) for part in parts if part.bias is not None]
        ctx.save_for_backward(x, weight_oi)
        ctx.due, ctx.parts = due, parts
        return functional.linear(x, weight_oi, torch.cat(biases) if biases else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight_oi = ctx.saved_tensors
        dy_no = grads[0].flatten(0, -2)
        ctx.due[-1].append((x.flatten(0, -2), dy_no, ctx.parts))
        return grads[0] @ weight_oi, None, None


def _learns(part: Weights) -> bool:
    return part.lora_A is None and all(parameter.requires_grad for parameter in part.parameters())


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        raise AssertionError("every parameter has a gradient buffer")
    parameter.grad.add_(gradient)
