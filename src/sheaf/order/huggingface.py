"""Hugging Face's Trainer on the order of a loader: the same global steps as any other loop, on any number of ranks.

    trainer = in_order(Trainer)(model=model, args=args, train_dataset=corpus.loader(sequence_length=2048, batch=64))

Left to itself the Trainer shuffles what it is given, or lets rank 0 read for all; splits batches over ranks as it
likes; on a resume draws and drops all batches before; drops what it thinks that the model does not take; and shifts
labels. Here it gets a map from slots of the sequence to samples, and a sampler whose position *is* the trainer's count
of updates: update N is global step N of the order, however many ranks, micro-batches and accumulated batches make it,
and resuming costs nothing that grows with N. Inside a step ranks get the samples that balance their work.

A model of transformers keeps attention inside documents when it gets positions that restart, no mask and no cache.
Labels go in twice: as transformers shifts them (without the last prediction of a full row), and shifted already.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from sheaf.errors import UsageError
from sheaf.order.gather import PADDING_LABEL
from sheaf.order.loader import Loader
from sheaf.order.mix import LARGEST_DRAW

if TYPE_CHECKING:
    from transformers import Trainer

Sample = dict[str, torch.Tensor]


def in_order(trainer: type[Trainer]) -> type[Trainer]:
    """A kind of Trainer (transformers', or one made from it) that takes a Loader as its train_dataset.

    args must have per_device_train_batch_size x gradient_accumulation_steps x ranks = the loader's batch, and max_steps
    or num_train_epochs=1; evaluation, logging, checkpoints and resume_from_checkpoint are the Trainer's own. Raises
    UsageError, when it is made or when training begins, for what would train on anything else than the order.
    """

    class InOrder(trainer):
        def __init__(self, *arguments: Any, train_dataset: Any, data_collator: Any = None, **named: Any) -> None:
            from transformers import default_data_collator

            if not isinstance(train_dataset, Loader):
                raise UsageError(f"train_dataset is to be a loader, not {type(train_dataset).__name__}")
            samples = Samples(train_dataset)
            super().__init__(*arguments, train_dataset=samples, data_collator=default_data_collator, **named)
            _check(self.args, train_dataset, data_collator)
            samples.names = _taken(self.model)
            self.args.remove_unused_columns = False  # "shift_labels" is taken by **kwargs, and would be removed
            self.args.ignore_data_skip = True  # the sampler is there already
            model: Any = self.model
            model.config.use_cache = False  # with a cache transformers lets a document see those before it

        def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
            return _Steps(self)

    InOrder.__name__ = InOrder.__qualname__ = f"InOrder{trainer.__name__}"
    return InOrder


class Samples(Dataset[Sample]):
    """Slot of the sequence, counted from step 0 on → its sample as a model of transformers takes it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.names: tuple[str, ...] = ("input_ids", "labels", "position_ids")

    def __len__(self) -> int:
        order, stop = self.loader.order, self.loader.stop
        return (LARGEST_DRAW // order.batch if stop is None else stop) * order.batch - self.loader.step * order.batch

    def __getitem__(self, slot: int) -> Sample:
        return self.__getitems__([slot])[0]

    def __getitems__(self, slots: list[int]) -> list[Sample]:
        samples: list[Sample] = []
        for step, some in groupby(slots, lambda slot: slot // self.loader.order.batch):
            samples += self._of_step(step, np.array(list(some), np.int64) % self.loader.order.batch)
        return samples

    def _of_step(self, step: int, slots: NDArray[np.int64]) -> list[Sample]:
        batch = self.loader.part(step, slots)
        following = torch.from_numpy(batch.labels)
        tensors = {
            "input_ids": torch.from_numpy(batch.input_ids),
            "labels": torch.nn.functional.pad(following[:, :-1], (1, 0), value=PADDING_LABEL),
            "shift_labels": following,
            "position_ids": torch.from_numpy(batch.position_ids),
        }
        return [{name: tensors[name][row] for name in self.names} for row in range(len(slots))]


class _Steps(Sampler[int]):
    """Slots from the trainer's next update on, as the Trainer deals them out: a batch to each rank in turn, and that as
    often as batches are accumulated."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._samples = trainer, trainer.train_dataset
        self._loader: Loader = self._samples.loader
        self._first_step = self._loader.step
        args, batch = trainer.args, self._loader.order.batch
        size, times, ranks = trainer._train_batch_size, args.gradient_accumulation_steps, args.world_size
        if size * times * ranks != batch:
            raise UsageError(
                f"an update of the Trainer takes {size * times * ranks} samples, a step of the order has {batch}",
                why=f"{size} a device, accumulated {times} times, on {ranks} ranks",
                fix="change per_device_train_batch_size or gradient_accumulation_steps, or the loader's batch",
            )
        self._shape = (ranks, times, size)

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[int]:
        order, stop = self._loader.order, self._loader.stop
        step = self._first_step + int(self._trainer.state.global_step)
        while stop is None or step < stop:
            by_rank = np.stack(order.split_ranks(step, self._shape[0])).reshape(self._shape)
            yield from (step * order.batch + by_rank.swapaxes(0, 1).ravel()).tolist()
            step += 1


def _taken(model: Any) -> tuple[str, ...]:
    """What of a sample the model takes."""
    parameters = inspect.signature(model.forward).parameters
    others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "position_ids" not in parameters and not others:
        raise UsageError(
            f"{type(model).__name__} takes no position_ids",
            why="they are what keeps the documents of a sample apart",
        )
    names = ("input_ids", "labels", "position_ids")
    return (*names, "shift_labels") if others or "shift_labels" in parameters else names


def _check(args: Any, loader: Loader, collator: Any) -> None:
    if loader.order.packing == "padded":
        raise UsageError("padded batches have shapes of their own", fix='packing="best-fit" or "concatenate"')
    if collator is not None:
        raise UsageError("a data_collator would make other labels and masks", fix="leave it out: samples are made")
    if args.max_steps <= 0 and (loader.stop is None or args.num_train_epochs != 1):
        raise UsageError(
            "it is not said when training ends",
            why="the order has no end" if loader.stop is None else "what a loader gives is given once",
            fix="set max_steps" + ("" if loader.stop is None else ", or num_train_epochs=1"),
        )
    if loader.stop is not None and args.max_steps > loader.stop - loader.step:
        raise UsageError(f"max_steps is {args.max_steps}, the loader has {loader.stop - loader.step} steps")
    if getattr(args, "use_cache", False):
        raise UsageError("use_cache would let the documents of a sample see each other", fix="leave it out")
    if args.accelerator_config.split_batches:
        raise UsageError("split_batches would cut an update's samples", fix="leave it out of accelerator_config")
    if args.world_size > 1 and not args.average_tokens_across_devices:
        raise UsageError(
            "the gradient would not be that of the global batch",
            why="each rank would divide by the number of its own predictions",
            fix="average_tokens_across_devices=True",
        )
