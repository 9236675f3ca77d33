"""What ranks of a model-parallel group say to each other inside the forward and the backward pass.

Four operators, each the transpose of its partner, so that autograd's backward is the partner's forward:

    gather      all ranks' parts of a dimension, end to end      backward: scatter_sum
    scatter_sum the sum over ranks, of which each keeps a part   backward: gather
    total       the sum over ranks, for all                      backward: nothing, where all of them go on alike
    exchange    all-to-all: cut along one dimension, joined      backward: exchange the other way round
                along another

They are operators of their own, so a compiled block holds them whole. A group is named by its ranks (`Group.name`),
because operators take strings but no groups; `use` makes a group known. Cost: gather and scatter_sum move
(N−1)/N of the whole through every rank, total twice that, exchange (N−1)/N of one part. What was sent and how long the
caller waited is counted in `traffic`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sheaf.model.operator import operator
from sheaf.parallel.mesh import Group
from sheaf.parallel.ranks import peers


@dataclass
class Traffic:
    """Bytes that this rank has sent, seconds that its training thread has waited for others, and seconds of sending
    that were hidden behind its computing."""

    bytes: int = 0
    seconds: float = 0.0
    hidden: float = 0.0


traffic = Traffic()
_groups: dict[str, Group] = {}


def use(group: Group) -> str:
    """Make a group known to the operators; returns the name to call them with."""
    _groups[group.name] = group
    return group.name


@contextmanager
def waiting(sent: int) -> Generator[None]:
    """Around a collective for whose end the caller waits."""
    start = time.perf_counter()
    with peers():
        yield
    traffic.seconds += time.perf_counter() - start
    traffic.bytes += sent


@operator("sheaf::gather")
def gather(part: Tensor, dimension: int, group: str) -> Tensor:
    """Every rank's part, end to end along a dimension. All parts have one shape."""
    known = _groups[group]
    first = part.movedim(dimension, 0).contiguous()
    whole = first.new_empty((known.size * first.shape[0], *first.shape[1:]))
    with waiting(first.nbytes * (known.size - 1)):
        dist.all_gather_single(whole, first, group=known.handle)
    return whole.movedim(0, dimension).contiguous()


@operator("sheaf::scatter_sum")
def scatter_sum(whole: Tensor, dimension: int, group: str) -> Tensor:
    """The sum over ranks, of which each keeps its equal part of a dimension. Summed in fp32 and rounded once."""
    known = _groups[group]
    first = whole.movedim(dimension, 0).contiguous()
    rows = first.shape[0] // known.size
    # An exchange and a sum of one's own: gloo's reduce-scatter sends the whole to everyone, and rounds at each hop.
    received = torch.empty_like(first)
    with waiting(first.nbytes * (known.size - 1) // known.size):
        dist.all_to_all_single(received, first, group=known.handle)
    parts = received.view(known.size, rows, *first.shape[1:])
    return parts.sum(0, dtype=torch.float32).to(whole.dtype).movedim(0, dimension).contiguous()


@operator("sheaf::total")
def total(value: Tensor, group: str) -> Tensor:
    """The sum over ranks."""
    known = _groups[group]
    result = value.clone(memory_format=torch.contiguous_format)
    with waiting(2 * result.nbytes * (known.size - 1) // known.size):
        dist.all_reduce(result, group=known.handle)
    return result


@operator("sheaf::exchange")
def exchange(x: Tensor, cut: int, join: int, group: str) -> Tensor:
    """Part r of the dimension `cut` goes to rank r; what arrives is joined along `join`, in the order of ranks."""
    known = _groups[group]
    parts = x.unflatten(cut, (known.size, x.shape[cut] // known.size)).movedim(cut, 0).contiguous()
    received = torch.empty_like(parts)
    with waiting(parts.nbytes * (known.size - 1) // known.size):
        dist.all_to_all_single(received, parts, group=known.handle)
    return torch.cat(received.unbind(0), dim=join)


@gather.register_fake
def _(part: Tensor, dimension: int, group: str) -> Tensor:
    return part.new_empty(_resized(part, dimension, lambda n: n * _groups[group].size))


@scatter_sum.register_fake
def _(whole: Tensor, dimension: int, group: str) -> Tensor:
    return whole.new_empty(_resized(whole, dimension, lambda n: n // _groups[group].size))


@total.register_fake
def _(value: Tensor, group: str) -> Tensor:
    return torch.empty_like(value, memory_format=torch.contiguous_format)


@exchange.register_fake
def _(x: Tensor, cut: int, join: int, group: str) -> Tensor:
    size = _groups[group].size
    shape = _resized(x, cut, lambda n: n // size)
    shape[join] *= size
    return x.new_empty(shape)


def _resized(x: Tensor, dimension: int, change: Callable[[int], int]) -> list[int]:
    shape = list(x.shape)
    shape[dimension] = change(shape[dimension])
    return shape


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.arguments = inputs[1:]  # pyright: ignore[reportAttributeAccessIssue]  # a context takes any attribute


gather.register_autograd(
    lambda ctx, grad: (scatter_sum(grad, *ctx.arguments), None, None),
    setup_context=_remember,
)
scatter_sum.register_autograd(
    lambda ctx, grad: (gather(grad, *ctx.arguments), None, None),
    setup_context=_remember,
)
exchange.register_autograd(
    lambda ctx, grad: (exchange(grad, ctx.arguments[1], ctx.arguments[0], ctx.arguments[2]), None, None, None),
    setup_context=_remember,
)


def agree(value: int, group: Group, device: torch.device) -> bool:
    """Whether all ranks of a group hold the very same number."""
    if group.handle is None:
        return True
    extremes = torch.tensor([value, -value], dtype=torch.int64, device=device)
    with waiting(0):
        dist.all_reduce(extremes, op=dist.ReduceOp.MIN, group=group.handle)
    return int(extremes[0]) == -int(extremes[1])
