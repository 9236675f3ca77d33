"""Optimiser state and update in host memory, for models whose state does not fit beside them on a GPU.

The optimiser sees copies of a rank's weights in pinned host memory, and its state is made beside them. A step copies
the gradients there, updates on the processor, and copies the weights back (ZeRO-Offload, Ren et al. 2021, without its
delayed update: what is computed is what would be without it, but for how two devices round). With sharding each rank
has its part only. Cost: 8 bytes a weight over the bus each step; host memory for weight, gradient and state, 16 bytes
with AdamW; on the GPU 8 bytes a weight less. Without a GPU the state lies in host memory anyway, and this is not used.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class HostCopies:
    """Copies of some tensors of a device. parameters: what an optimiser takes, each with a gradient buffer."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        self.parameters = {name: nn.Parameter(_on_host(tensor)) for name, tensor in held.items()}
        for parameter in self.parameters.values():
            parameter.grad = _on_host(parameter.detach())
        self.take_weights(held)

    @torch.no_grad()
    def take_weights(self, held: Mapping[str, Tensor]) -> None:
        for name, tensor in held.items():
            self.parameters[name].copy_(tensor, non_blocking=True)
        _wait(held)

    @torch.no_grad()
    def take_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            buffer = self.parameters[name].grad
            if buffer is None:
                raise AssertionError("every copy has a gradient buffer")
            buffer.copy_(gradient, non_blocking=True)
        _wait(gradients)

    @torch.no_grad()
    def give_weights(self, held: Mapping[str, Tensor]) -> None:
        """Copy them back. What runs on the device afterwards waits for it by itself."""
        for name, tensor in held.items():
            tensor.copy_(self.parameters[name], non_blocking=True)


def _on_host(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())


def _wait(tensors: Mapping[str, Tensor]) -> None:
    """Until what was copied from a GPU has arrived: the processor reads it next."""
    if any(tensor.device.type == "cuda" for tensor in tensors.values()):
        torch.cuda.synchronize()
