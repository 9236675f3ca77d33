"""The loader's batches as torch tensors, in the shape that PyTorch's own tools take. Needs torch; nothing is copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from sheaf.errors import UsageError

if TYPE_CHECKING:
    from sheaf.order.loader import Loader

TENSORS = ("input_ids", "labels", "position_ids", "document_ids")


class TorchBatches(IterableDataset[dict[str, Any]]):
    """Dicts of the four tensors, `step` and `valid_tokens`; made by `Loader.torch()`.

    With torch.utils.data.DataLoader: batch_size=None (batches are made already) and num_workers=0 (the loader reads
    ahead by itself; each worker process would repeat every batch, and so is refused).
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise UsageError(
                "sheaf's loader does not run in DataLoader's worker processes",
                why="each of them would yield every batch",
                fix="DataLoader(..., batch_size=None, num_workers=0); the loader reads ahead by itself",
            )
        for batch in self.loader:
            tensors: dict[str, Any] = {name: torch.from_numpy(getattr(batch, name)) for name in TENSORS}
            yield {**tensors, "step": batch.step, "valid_tokens": batch.valid_tokens}

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)
