"""Keys and values of the positions already computed, so that decoding a token costs one row of attention.

Memory: 2 · layers · heads · capacity · head_dim elements a row of the batch, taken at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sheaf.model.config import ModelConfig


class KeyValueCache:
    """Room for `capacity` positions of `batch` rows; the decoder's forward fills it in order."""

    def __init__(
        self, config: ModelConfig, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (2, config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self._store = torch.zeros(shape, dtype=dtype, device=device)
        self._layers = config.num_hidden_layers
        self.capacity = capacity
        self.length = 0

    def extended(self, layer: int, k_bhte: Tensor, v_bhte: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; returns all of them. The last layer's call moves the position on."""
        end = self.length + k_bhte.shape[2]
        k_all, v_all = self._store[0, layer, :, :, :end], self._store[1, layer, :, :, :end]
        k_all[:, :, self.length :] = k_bhte
        v_all[:, :, self.length :] = v_bhte
        if layer == self._layers - 1:
            self.length = end
        return k_all, v_all

    def visible(self, new: int, window: int | None) -> Tensor:
        """(1, new, length + new): which keys each of the next rows sees."""
        keys = torch.arange(self.length + new, device=self._store.device)
        rows = keys[self.length :, None]
        seen = keys <= rows
        return (seen if window is None else seen & (keys > rows - window))[None]
