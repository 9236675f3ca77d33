"""Sharded data parallel: each rank keeps a part of every matrix, with its gradient and optimiser state.

torch's FSDP2 (`fully_shard`; ZeRO-3, Rajbhandari et al. 2020), a block at a time: the parts are gathered in the compute
dtype before a block runs, dropped after it, gathered again for its backward, and the gradients are summed in fp32 into
the parts. (Models of other families are gathered in fp32: what autocast makes of a weight differs from use to use.)
With data > 1 the parts are the same on every replica, and their gradients are summed over replicas too (hybrid
sharding). Vectors (norms, biases) are a thousandth of the weights: they stay whole, in fp32, and their gradients travel
with `data.py`. What FSDP sends it sends through the three functions here, which count it. A sum is an exchange and a
sum of one's own, in fp32: gloo's reduce-scatter sends the whole to everyone, and rounds at each hop.

Cost, a step and micro-batch: 2·(N−1)/N of the weights in the compute dtype gathered, (N−1)/N of the gradients in fp32,
or bf16 where the recipe says so, scattered, per rank; between replicas 2·(R−1)/R of a part in fp32. On CPU the training
thread waits for all of it. Memory: weights, gradients and optimiser state 1/N each, and two blocks' weights whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from sheaf.model.decoder import Decoder
from sheaf.model.families import Model
from sheaf.model.other import OtherModel
from sheaf.model.pieces import Piece, chunk_range
from sheaf.parallel.collectives import waiting
from sheaf.parallel.mesh import Group, Mesh
from sheaf.recipe import Communication


def shard_matrices(model: Model, pieces: dict[str, Piece], mesh: Mesh, how: Communication) -> None:
    """Leave this rank its rows of every matrix. `pieces` says before and afterwards what each parameter holds."""
    vectors = {parameter for parameter in model.parameters() if parameter.ndim < 2}
    # Casting is the model's own: norms and rotations stay fp32.
    dtype = model.compute_dtype if isinstance(model, Decoder) else torch.float32
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    grid = DeviceMesh.from_group(_handle(mesh.group("shard")), mesh.ranks.device.type)
    replicas = mesh.group("data", "context")
    # Nobody changes hidden states in place, and models of other families may end in a view.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*model.blocks(), model):
        sharded = fully_shard(module, mesh=grid, mp_policy=policy, ignored_params=vectors)
        # The loss is already divided by the global batch: sums, no means.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        # An expert that no token of a rank went to has a gradient on others; attention to an encoder has none anywhere.
        sharded.set_reduce_scatter_unused_params(isinstance(model, OtherModel))
        sharded.set_custom_all_gather(_Gather())
        sharded.set_custom_reduce_scatter(_ScatterSum(torch.bfloat16 if how.gradients == "bf16" else torch.float32))
        if replicas.size > 1:
            sharded.set_all_reduce_hook(partial(_sum_over, replicas))
    shards, mine = mesh.layout.shard, mesh.at["shard"]
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            pieces[name] = pieces[name].cut(0, *chunk_range(parameter.shape[0], shards, mine))


def reshard(model: nn.Module) -> None:
    """Drop what the modules have gathered of their weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class _Allocates:
    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Allocates, AllGather):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        with waiting(input_tensor.nbytes * (group.size() - 1)):
            dist.all_gather_single(output_tensor, input_tensor, group=group)


class _ScatterSum(_Allocates, ReduceScatter):
    """dtype: of what is sent."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        sent, ranks = input_tensor.to(self.dtype), group.size()
        received = torch.empty_like(sent)
        with waiting(sent.nbytes // ranks * (ranks - 1)):
            dist.all_to_all_single(received, sent, group=group)
        torch.sum(received.view(ranks, -1), 0, dtype=torch.float32, out=output_tensor)


def _sum_over(replicas: Group, part: Tensor) -> None:
    with waiting(2 * part.nbytes * (replicas.size - 1) // replicas.size):
        dist.all_reduce(part, group=replicas.handle)


def _handle(group: Group) -> dist.ProcessGroup:
    if group.handle is None:
        raise ValueError("one rank alone cannot share its weights out")
    return group.handle
