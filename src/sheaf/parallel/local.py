"""What of a tensor lies on this rank. Apart from `shard.py`, whose imports cost every rank two seconds."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(parameter: Tensor) -> bool:
    """Whether other ranks hold the rest of it: a DTensor, which alone can be asked for its part."""
    return hasattr(parameter, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or, of a sharded parameter or gradient, this rank's part."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor
