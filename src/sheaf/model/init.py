"""Starting weights that depend on the seed and a parameter's name only, not on layout or order of construction.

Matrices that read the residual stream: N(0, 2/(5d)), the "small init" of Nguyen & Salazar 2019 (Transformers without
Tears). Matrices that write to it (o_proj, down_proj): the same divided by √(2·layers), so that the stream's variance
does not grow with depth (Radford et al. 2019, GPT-2, section 2.3). Embedding and head: N(0, 0.02²), as in GPT-2.
Norms one, biases zero.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Decoder
from sheaf.model.pieces import Piece, Values


def starting_values(config: ModelConfig, seed: int) -> Values:
    """The values of any piece of a model's parameters. Drawn on the CPU, so that every device starts from the same."""

    def value(name: str, piece: Piece) -> Tensor:
        if len(piece.shape) == 1:
            return torch.full(piece.size, 0.0 if name.endswith("bias") else 1.0)
        generator = torch.Generator().manual_seed(seed_of(name, seed))
        drawn = torch.randn(piece.shape, generator=generator)
        return drawn[piece.slices] * _deviation(name, config)

    return value


def initialise(model: Decoder, seed: int) -> None:
    """Fill all parameters of a whole model in place."""
    value = starting_values(model.config, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(value(name, Piece.whole(tuple(parameter.shape))))


def seed_of(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _deviation(name: str, config: ModelConfig) -> float:
    if "layers." not in name:
        return 0.02
    small = math.sqrt(2 / (5 * config.hidden_size))
    writes = name.endswith(("o_proj.weight", "down_proj.weight"))
    return small / math.sqrt(2 * config.num_hidden_layers) if writes else small
