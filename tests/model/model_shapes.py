"""Small models that the tests of this room share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sheaf.model.config import ModelConfig, preset
from sheaf.model.decoder import Decoder

VOCABULARY = 320


def small_config(family: str = "qwen3", **changes: Any) -> ModelConfig:
    shape = {"hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 96}
    config = preset("tiny", vocab_size=VOCABULARY, family=family, max_positions=256, end_of_text=0, **shape)
    return replace(config, **changes)


def random_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    """Every parameter random, norms and biases too, and large enough that attention is far from uniform."""
    model = Decoder(config, dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.15 * noise)
    return model


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def positions(batch: int, length: int) -> torch.Tensor:
    return torch.arange(length).expand(batch, length)
