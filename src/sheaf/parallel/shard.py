"""Sharded data parallel: each rank keeps a part of every matrix, with its gradient and optimiser state.

torch's FSDP2 (`fully_shard`; ZeRO-3, Rajbhandari et al. 2020), a block at a time: the parts are gathered in the compute
dtype before a block runs, dropped after it, gathered again for its backward, and the gradients are summed in fp32 into
the parts. (Models of other families are gathered in fp32: what autocast makes of a weight differs from use to use.)
With data > 1 the parts are the same on every replica, and their gradients are summed over replicas too (hybrid
sharding). Vectors (norms, biases) are a thousandth of the weights: they stay whole, in fp32, and their gradients travel
with `data.py`.

Cost, a step and micro-batch: 2·(N−1)/N of the weights in the compute dtype gathered, (N−1)/N of the gradients in fp32
scattered, per rank. Memory: weights, gradients and optimiser state 1/N each, and two blocks' weights whole.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sheaf.model.decoder import Decoder
from sheaf.model.families import Model
from sheaf.model.other import OtherModel
from sheaf.model.pieces import Piece, chunk_range
from sheaf.parallel.mesh import Group, Mesh


def shard_matrices(model: Model, pieces: dict[str, Piece], mesh: Mesh) -> None:
    """Leave this rank its rows of every matrix. `pieces` says before and afterwards what each parameter holds."""
    vectors = {parameter for parameter in model.parameters() if parameter.ndim < 2}
    # Casting is the model's own: norms and rotations stay fp32.
    dtype = model.compute_dtype if isinstance(model, Decoder) else torch.float32
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    grid = _device_mesh(mesh)
    # Nobody changes hidden states in place, and models of other families may end in a view.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*model.blocks(), model):
        sharded = fully_shard(module, mesh=grid, mp_policy=policy, ignored_params=vectors)
        # The loss is already divided by the global batch: sums, no means.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        # An expert that no token of a rank went to has a gradient on others; attention to an encoder has none anywhere.
        sharded.set_reduce_scatter_unused_params(isinstance(model, OtherModel))
    shards, mine = mesh.layout.shard, mesh.at["shard"]
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            pieces[name] = pieces[name].cut(0, *chunk_range(parameter.shape[0], shards, mine))


def reshard(model: nn.Module) -> None:
    """Drop what a forward without a backward has gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What of a parameter or gradient lies on this rank: the tensor itself, or its part where it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _device_mesh(mesh: Mesh) -> DeviceMesh:
    replicas, shards = mesh.group("data", "context"), mesh.group("shard")
    device = mesh.ranks.device.type
    if replicas.handle is None:
        return DeviceMesh.from_group(_handle(shards), device)
    numbers = mesh.grid(("data", "context"), ("shard",))
    return DeviceMesh.from_group(
        [replicas.handle, _handle(shards)], device, mesh=torch.from_numpy(numbers), mesh_dim_names=("data", "shard")
    )


def _handle(group: Group) -> dist.ProcessGroup:
    if group.handle is None:
        raise ValueError("one rank alone cannot share its weights out")
    return group.handle
