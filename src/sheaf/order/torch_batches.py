"""The loader's batches as torch tensors, in the shape that PyTorch's own tools take. Needs torch; nothing is copied.

A plain loop, torch.utils.data.DataLoader and Lightning take it as it is. In a DataLoader's worker processes, worker k
of n makes every n-th step from the k-th on; the DataLoader takes from them in turn, so the steps come out in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from sheaf.errors import UsageError
from sheaf.order.mix import LARGEST_DRAW

if TYPE_CHECKING:
    from sheaf.order.loader import Batch, Loader

TENSORS = ("input_ids", "labels", "position_ids", "document_ids")
ALL = (*TENSORS, "cu_seqlens")
MOST_WORKERS = 1024


class TorchBatches(IterableDataset[dict[str, Any]]):
    """Dicts of the tensors asked for, `step`, `valid_tokens` and `replaced`; made by `Loader.torch()`.

    With torch.utils.data.DataLoader: batch_size=None, as batches are made already, and best num_workers=0, as the
    loader reads ahead by itself. With workers the position is known to them only, each ahead of what was handed out: so
    state_dict, and iterating again without seek or load_state_dict, raise UsageError rather than go on elsewhere.
    """

    def __init__(self, loader: Loader, names: Sequence[str]) -> None:
        if not set(names) <= set(ALL):
            raise UsageError(f"a batch has no tensors {sorted(set(names) - set(ALL))}", fix=f"some of {', '.join(ALL)}")
        self.loader, self.names = loader, tuple(names)
        self._first_step = loader.step
        self._seeks = 1
        self._workers = torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_()  # after which seek each has begun

    def __len__(self) -> int:
        """Steps from where the loader stood to its end: not what is left, which is what trainers expect of a length.

        Of an endless order all that can be counted. Lightning needs a length: without one it asks for a batch more
        than it trains on, and a checkpoint would skip that batch.
        """
        end = LARGEST_DRAW // self.loader.order.batch if self.loader.stop is None else self.loader.stop
        return end - self._first_step

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is None:
            return map(self._tensors, self.loader)
        if worker.num_workers > MOST_WORKERS or self._workers[worker.id] == self._seeks:
            raise UsageError(
                "the position is not known, as worker processes have read ahead of what was trained",
                fix="seek(batch['step'] + 1) before iterating again; or num_workers=0: the loader reads ahead",
            )
        self._workers[worker.id] = self._seeks
        return map(self._tensors, self.loader.take_turns(worker.id, worker.num_workers))

    def seek(self, step: int) -> None:
        """Go to any step; costs nothing."""
        self.loader.seek(step)
        self._seeks += 1

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch that was last handed out: small JSON."""
        if (self._workers == self._seeks).any():
            raise UsageError(
                "the position is not known, as worker processes have read ahead of what was trained",
                fix="loader.order.state(batch['step'] + 1); or num_workers=0: the loader reads ahead by itself",
            )
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken, on any rank of any world. Raises UsageError if it is of another order."""
        self.loader.load_state_dict(state)
        self._seeks += 1

    def _tensors(self, batch: Batch) -> dict[str, Any]:
        made: dict[str, Any] = {name: torch.from_numpy(getattr(batch, name)) for name in self.names}
        made["step"], made["valid_tokens"], made["replaced"] = batch.step, batch.valid_tokens, len(batch.replaced)
        return made
