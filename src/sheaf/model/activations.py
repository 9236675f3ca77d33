"""How many bytes a block holds for its backward pass, and at most, told without computing anything.

The block is run forward and backward on fake tensors, which have a shape and a dtype but no memory, and the storages
that live are counted: so what is told is what autograd, the operators and `recompute.py` really keep, for any family,
cut or precision, and no formula has to follow the code. What is inside a custom operator while it runs (a tile of
attention scores) is not seen. A compiled block keeps less: the compiler computes again what is cheap.
Cost: some 0.1 s a mode, whatever the size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Block
from sheaf.model.recompute import Recompute, recomputing


@dataclass(frozen=True)
class Held:
    """Bytes of one block and micro-batch, weights and their gradients not counted. kept: from its forward until its
    backward. more: at the peak of its backward, beyond that."""

    kept: int
    more: int


def held_by(
    block: Block, config: ModelConfig, mode: Recompute, shape_bt: tuple[int, int], cut: int, dtype: torch.dtype
) -> Held:
    """What a block, on any device, would hold on a CPU or, where there is one, on a GPU.

    shape_bt: of the micro-batch's positions that this rank computes. cut: tensor ranks that hold a stretch of them each
    between blocks.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    live = Live()
    with FakeTensorMode(), torch.device(device):
        real = dict(block.named_parameters())
        learns = {name: p.requires_grad for name, p in real.items()}
        weights = {n: torch.empty(p.shape, dtype=p.dtype, requires_grad=learns[n]) for n, p in real.items()}
        b, t = shape_bt
        hidden_btd = torch.empty((b, t // cut, config.hidden_size), dtype=dtype, requires_grad=True)
        angles_bte = torch.empty((b, t, config.head_dim // 2))
        starts_bt = torch.empty((b, t), dtype=torch.int64)
        for weight in weights.values():  # what a weight gets is added to a buffer that is there, and goes
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(lambda done: setattr(done, "grad", None))
        for known in (*weights.values(), hidden_btd, angles_bte, starts_bt):
            live.ignore(known)

        def forward(x_btd: Tensor) -> Tensor:
            return functional_call(block, weights, (x_btd, angles_bte, angles_bte, starts_bt))

        with live:
            return _counted(recomputing(forward, mode), hidden_btd, live)


def _counted(forward: Callable[..., Tensor], hidden_btd: Tensor, live: Live) -> Held:
    out_btd = forward(hidden_btd)
    # The output is the next block's input, as this one's is the output of the one before: each counts its own.
    kept = live.bytes - out_btd.nbytes + hidden_btd.nbytes
    live.most = live.bytes
    out_btd.backward(torch.empty_like(out_btd))
    return Held(kept, live.most - kept)


class Live(TorchDispatchMode):
    """Counts the storages that operators have made and that live: `bytes` now, `most` at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._known: set[int] = set()

    def ignore(self, tensor: Tensor) -> None:
        self._known.add(_address(tensor.untyped_storage()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = _address(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _address(storage: torch.UntypedStorage) -> int:
    return storage._cdata  # pyright: ignore[reportPrivateUsage]  # a fake one has no data to tell it by
