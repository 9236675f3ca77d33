"""Batches for any training loop: a rank's part of each global step, gathered ahead by one thread.

No worker processes: planning many steps at once is vectorised, gathering is one kernel without the GIL, and so one
thread feeds a node's devices. The only state is the number of the next step. Under numpy alone; `Loader.torch()`
gives tensors.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.tokens import Damage
from sheaf.errors import CorruptStore, UsageError
from sheaf.order import replace as replace_samples
from sheaf.order import sending
from sheaf.order.ahead import Plan, Split, read_ahead
from sheaf.order.balance import check_ranks, check_speeds, most_samples, passes_of_buckets, passes_of_samples
from sheaf.order.bounds import Bounds
from sheaf.order.gather import PADDING_LABEL, PADDING_TOKEN, Arrays, Gatherer, Tokens, padded
from sheaf.order.order import Order
from sheaf.order.prefetch import Prefetch, grouped
from sheaf.order.replace import Replaced

if TYPE_CHECKING:
    from sheaf.order.torch_batches import TorchBatches

PLANNED_SAMPLES = 1024  # planned at once: amortises the vectorised calls, yet is done in well under a millisecond
GATHERED_TOKENS = 2**15  # small batches are read together: a call costs some ten microseconds
HANDED_TOKENS = 2**16  # small batches go from thread to thread together: a hand-over costs tens of microseconds


class DamagedData(UserWarning):
    """A block of the corpus is damaged, and other samples are trained than planned."""


@dataclass(eq=False)  # not frozen: that takes three times as long to make one
class Batch:
    """A rank's part of a global step (n samples of T tokens; padded: n documents, T that of the longest).

    input_ids, labels, position_ids: int64 (n, T). document_ids: int32 (n, T), numbered from 0 inside a row; attention
    stays inside equal numbers. Positions restart at 0 with every document. Padding: token 0, label -100, document -1,
    positions counted as if it were one more document. labels[i] is the token after input_ids[i]: already shifted; -100
    too where the corpus says that it is not to be predicted (what a user said to an assistant). samples: int64 (n,),
    for each row the slot in the step of the sample that it is, or (padded) belongs to. valid_tokens: predictions of
    the *global* step, by which its loss is divided; inputs: its tokens, of which perhaps not all are predicted.
    replaced: those of these samples that stand in for others, which lie in damaged blocks of the corpus.
    """

    step: int
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    bounds: Bounds = field(repr=False)
    samples: NDArray[np.int64]
    valid_tokens: int
    inputs: int
    split: Split = field(repr=False)
    order: Order = field(repr=False)
    replaced: tuple[Replaced, ...] = ()

    @property
    def position_ids(self) -> NDArray[np.int64]:
        return self.bounds.numbers[0]

    @property
    def document_ids(self) -> NDArray[np.int32]:
        return self.bounds.numbers[1]

    @cached_property
    def digest(self) -> str:
        """The digest of the global step's sample set as this rank knows it; computed when asked for."""
        return replace_samples.digest(self.order, self.step, self.replaced)

    @property
    def cu_seqlens(self) -> NDArray[np.int32]:
        """Where each document begins in the rows laid one after another, and their end: int32 (documents + 1,), as
        flash-attention's functions for sequences of unequal length take it. A row's padding is one more document."""
        return self.bounds.cu_seqlens

    @cached_property
    def max_seqlen(self) -> int:
        """The longest document between two of cu_seqlens; 0 if there is none."""
        return int(np.diff(self.cu_seqlens).max(initial=0))


def micro(batch: Batch, size: int) -> list[Batch]:
    """Split into forward passes of at most `size` samples and of about equal cost: equally many on every rank.

    Passes have one shape, in every step: what lacks is filled up with empty samples, and a rank without samples makes
    empty passes. Padded: a pass has at most `size` · sequence_length positions, and is as wide as its longest row.
    """
    return _micro_buckets(batch, size) if batch.order.packing == "padded" else _micro_samples(batch, size)


def _micro_samples(batch: Batch, size: int) -> list[Batch]:
    split = batch.split
    whole = -(-max(split.most_r) // size)  # passes of a whole step
    size_r = [max(1, -(-most // whole)) for most in split.most_r]
    passes = max(1, *(-(-len(slots) // size) for slots, size in zip(split.slots_r, size_r, strict=True)))
    cost = batch.order.cost(split.rows[split.slots_r[split.rank]])
    rows, width = size_r[split.rank], batch.input_ids.shape[1]
    return [_part(batch, which, rows, width) for which in passes_of_samples(cost, passes)]


def _micro_buckets(batch: Batch, size: int) -> list[Batch]:
    split, order = batch.split, batch.order
    shapes = [order.buckets(split.rows[slots]) for slots in split.slots_r]
    plans = [passes_of_buckets(*shape, size * order.sequence_length) for shape in shapes]
    count, width = shapes[split.rank]
    bucket = np.repeat(np.arange(len(count)), count)
    parts = [
        _part(batch, np.flatnonzero(np.isin(bucket, which)), 1, int(width[which].max())) for which in plans[split.rank]
    ]
    empty = [_part(batch, np.zeros(0, np.int64), 1, 1)] * (max(1, *map(len, plans)) - len(parts))
    return parts + empty


def _part(batch: Batch, which: NDArray[np.int64], rows: int, width: int) -> Batch:
    """These rows of a batch, cut to a width, with empty ones behind them if they are fewer than `rows`."""
    every = len(which) == len(batch.samples)  # they rise: no copy where it is all of them
    at: Any = slice(None) if every else which
    filled = max(rows, len(which))
    ids = padded(batch.input_ids[at, :width], filled, PADDING_TOKEN)
    labels = padded(batch.labels[at, :width], filled, PADDING_LABEL)
    bounds = batch.bounds.some(at, filled, width)
    return replace(batch, input_ids=ids, labels=labels, bounds=bounds, samples=batch.samples[at])


class _Place(NamedTuple):
    """Of a process among the ranks. most_r: as in Split. tokens: of an even part of a step."""

    rank: int
    world: int
    speeds: tuple[float, ...] | None
    most_r: list[int]
    tokens: int


class Loader:
    """Iterate batches from the position `step` on. A loader is a place in one sequence: iterating again goes on there.

    token_files: by number of shard, the corpus' token files, each block of which is checked before its first use, or
    flat arrays (uint16 or uint32, memory-mapped or not), which are believed. rank, world: which part of each step;
    None: the place of this process among those that torch.distributed has joined when iteration begins, else it is
    alone. start, stop: steps [start, stop); stop None: as far as the order goes. prefetch: batches kept ready by the
    thread; 0: no thread. speeds: of all ranks, relative, the same on each of them: a rank twice as fast gets twice the
    work, and the global steps stay what they are. strict: a damaged block is a CorruptStore error, as it always is to
    padded batches; else other samples stand in for those that lie there (order/replace.py), each batch says which, and
    `tell` is called, with None a DamagedData warning for each block. Raises EmptyStep if a step has fewer samples than
    there are ranks.

    A loader may be sent to another process, forked or spawned: it goes on there from its position, with a thread of
    that process.
    """

    def __init__(
        self,
        order: Order,
        token_files: Sequence[Tokens],
        *,
        rank: int | None = None,
        world: int | None = None,
        start: int = 0,
        stop: int | None = None,
        prefetch: int = 2,
        speeds: Sequence[float] | None = None,
        strict: bool = False,
        tell: Callable[[Replaced], None] | None = None,
    ) -> None:
        self.order, self.prefetch = order, prefetch
        self._rank, self._world, self._speeds = rank, world, speeds
        if rank is not None or world is not None:
            self._place()
        self.step = start
        self.stop = order.steps if stop is None else stop if order.steps is None else min(stop, order.steps)
        self.strict, self._tell, self._token_files = strict, tell, token_files
        self._open()

    def _open(self) -> None:
        """What belongs to one process."""
        self._process = os.getpid()
        self._gatherer = Gatherer(self.order.by_rows() if self._padded else self.order, self._token_files)
        self._ahead: Prefetch[list[Batch]] | None = None
        self._warned: set[tuple[str, int]] = set()

    @property
    def _padded(self) -> bool:
        return self.order.packing == "padded"

    def __getstate__(self) -> dict[str, Any]:
        own = ("_process", "_gatherer", "_ahead", "_warned")
        state = {name: value for name, value in self.__dict__.items() if name not in own}
        place = self._place()  # as this process knows it: the other one has joined no ranks
        return {**state, "order": sending.sent(self.order), "_rank": place.rank, "_world": place.world}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "order": sending.received(state["order"])})
        self._open()

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        return self._iterate()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the prefetch thread, if there is one. The position stays; iterating again starts a new one."""
        if self._ahead is not None and self._process == os.getpid():
            self._ahead.close()
        self._ahead = None

    def seek(self, step: int) -> None:
        """Go to any step; costs nothing."""
        self.close()
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch that was last handed out, whatever was read ahead: small JSON."""
        return self.order.state(self.step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken, on any rank of any world. Raises UsageError if it is of another order."""
        self.seek(self.order.check(state))

    def part(self, step: int, slots: NDArray[np.int64]) -> Batch:
        """These samples of a global step, whoever's they are: by slot. The position stays.

        Raises UsageError for a padded order, whose samples are several rows each.
        """
        if self._padded:
            raise UsageError("a padded order has no samples of one row", fix='packing="best-fit" or "concatenate"')
        self._here()
        order = self.order
        rows = order.rows(order.samples(step))
        valid, inputs = (int(x[rows].sum(dtype=np.int64)) for x in (order.pack.sample_valid, order.pack.sample_tokens))
        split = Split(0, rows, [slots], [len(slots)])
        plan = Plan(step, rows[slots], slots, valid, inputs, order.sequence_length, split)
        return self._reported(self._batch(plan))

    def take_turns(self, turn: int, turns: int) -> Generator[Batch]:
        """Of the batches from the position on every so many-th, beginning with number `turn`, without a thread: what
        one of some processes does that read ahead together. The position stays."""
        self._here()
        yield from map(self._reported, self._batches(self.step, turn, turns))

    def torch(self, names: Sequence[str] = ()) -> TorchBatches:
        """The same as dicts of torch tensors: an IterableDataset, for plain loops, Lightning and
        DataLoader(batch_size=None). names: which of input_ids, labels, position_ids, document_ids, cu_seqlens; none:
        all but the last. What isn't asked for isn't written. `replaced` counts samples that stand in for others."""
        from sheaf.order.torch_batches import TENSORS, TorchBatches

        return TorchBatches(self, names or TENSORS)

    def _iterate(self) -> Generator[Batch]:
        self._here()
        for batch in self._handed_out(self._batches(self.step)):
            self.step = batch.step + 1
            yield self._reported(batch)

    def _here(self) -> None:
        if self._process != os.getpid():  # forked: the thread, and what it held locked, stayed behind
            self._open()

    def _place(self) -> _Place:
        rank, world = (self._rank, self._world) if (self._rank, self._world) != (None, None) else _joined()
        if rank is None or world is None or not 0 <= rank < world:
            raise UsageError(f"rank {rank} of {world} does not exist", fix="ranks count from 0 to world - 1")
        check_ranks(self.order.batch, world)
        speeds = check_speeds(self._speeds, world)
        tokens = -(-self.order.batch // world) * self.order.sequence_length
        return _Place(rank, world, speeds, most_samples(self.order.batch, world, speeds), tokens)

    def _handed_out(self, batches: Iterator[Batch]) -> Generator[Batch]:
        if self.prefetch == 0:
            yield from batches
            return
        place = self._place()
        groups = grouped(batches, max(1, HANDED_TOKENS // place.tokens))
        self._ahead = ahead = Prefetch(groups, self.prefetch, f"sheaf-loader-{place.rank}")
        with closing(ahead):
            for batch in chain.from_iterable(ahead):
                if ahead.closed:
                    return
                yield batch

    def _batches(self, step: int, turn: int = 0, turns: int = 1) -> Generator[Batch]:
        planned = islice(self._planned(step), turn, None, turns)
        ready = planned if self._gatherer.lasting else read_ahead(planned, self._gatherer)
        for plans in grouped(ready, 1 if self._padded else max(1, GATHERED_TOKENS // self._place().tokens)):
            yield from self._together(plans)

    def _planned(self, step: int) -> Generator[Plan]:
        place, order = self._place(), self.order
        together = max(1, PLANNED_SAMPLES // order.batch)
        valid, tokens = order.pack.sample_valid, order.pack.sample_tokens
        while self.stop is None or step < self.stop:
            end = step + together if self.stop is None else min(step + together, self.stop)
            rows = order.rows(order.samples_of_slots(*order.slot_range(step, end)))
            firsts = np.arange(0, len(rows), order.batch)
            counts = (np.add.reduceat(x[rows], firsts, dtype=np.int64).tolist() for x in (valid, tokens))
            for first, predictions, inputs in zip(firsts.tolist(), *counts, strict=True):
                part = rows[first : first + order.batch]
                yield self._plan(place, step, part, predictions, inputs)
                step += 1

    def _plan(self, place: _Place, step: int, rows: NDArray[np.int64], valid_tokens: int, inputs: int) -> Plan:
        order = self.order
        split = Split(place.rank, rows, order.split_rows(rows, place.world, place.speeds), place.most_r)
        slots = split.slots_r[place.rank]
        mine, width = rows[slots], order.sequence_length
        if self._padded:
            count, width_n = order.buckets(mine)
            slots, mine, width = np.repeat(slots, count), order.runs_of_rows(mine)[1], int(width_n.max(initial=1))
        return Plan(step, mine, slots, valid_tokens, inputs, width, split)

    def _together(self, plans: list[Plan]) -> Generator[Batch]:
        """The batches of plans of one width: read in one go, if nothing is wrong with any of them."""
        if len(plans) > 1:
            with suppress(CorruptStore):  # it comes again, after the batches before it
                both, damaged = self._gatherer.gather(np.concatenate([plan.rows for plan in plans]), plans[0].width)
                if not damaged:
                    begin = 0
                    for plan in plans:
                        end = begin + len(plan.rows)
                        arrays = both[0][begin:end], both[1][begin:end]
                        yield self._made(plan, arrays, self._gatherer.bounds(plan.rows, plan.width))
                        begin = end
                    return
        yield from map(self._batch, plans)

    def _batch(self, plan: Plan) -> Batch:
        arrays, damaged = self._gatherer.gather(plan.rows, plan.width)
        bounds = self._gatherer.bounds(plan.rows, plan.width)
        replaced = tuple(self._stand_in(plan, i, damage, arrays, bounds) for i, damage in damaged.items())
        return self._made(plan, arrays, bounds, replaced)

    def _made(self, plan: Plan, arrays: Arrays, bounds: Bounds, replaced: tuple[Replaced, ...] = ()) -> Batch:
        about = plan.slots, plan.valid_tokens, plan.inputs, plan.split, self.order
        return Batch(plan.step, *arrays, bounds, *about, replaced)

    def _stand_in(self, plan: Plan, i: int, damage: Damage, arrays: Arrays, bounds: Bounds) -> Replaced:
        """Fill row i with another sample than the planned one."""
        if self.strict or self._padded:  # a bucket of another shape would not fit into the passes that all have planned
            raise damage.error()
        order, slot = self.order, int(plan.slots[i])
        first = order.slot_range(plan.step, plan.step + 1)[0]
        planned = order.samples_of_slots(first + slot, first + slot + 1)
        source, epoch, index = int(planned.source[0]), int(planned.epoch[0]), int(planned.index[0])
        begin, predicted = int(order.pack.source_first_sample[source]), int(order.pack.sample_valid[plan.rows[i]])
        for other in replace_samples.candidates(order, source, epoch, index):
            found, also_damaged = self._gatherer.gather(np.array([begin + other]), plan.width)
            if not also_damaged:
                for array, row in zip(arrays, found, strict=True):
                    array[i] = row[0]
                bounds.replace(i, begin + other)
                replace_samples.keep_predictions(arrays[1][i], predicted)
                return Replaced(plan.step, slot, source, epoch, index, other, predicted, damage)
        raise replace_samples.nothing_left(order, damage, source)

    def _reported(self, batch: Batch) -> Batch:
        for one in batch.replaced:
            self._report(one)
        return batch

    def _report(self, one: Replaced) -> None:
        if self._tell is not None:
            self._tell(one)
        elif (one.damage.file, one.damage.block) not in self._warned:
            self._warned.add((one.damage.file, one.damage.block))
            said = f"step {one.step}: other samples stand in for those of a damaged block\n{one.damage.error()}"
            warnings.warn(said, DamagedData, stacklevel=4)


def _joined() -> tuple[int, int]:
    """This process' rank and the number of ranks, as torch.distributed knows them; torch is not loaded to ask it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
