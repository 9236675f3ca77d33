"""Reading ahead in order: the blocks that the next steps touch are on their way before they are wanted.

The order is known, so what is fetched is exactly what will be read, first things first. How far ahead is said in bytes
of blocks that were not looked at yet: a few seconds of a store's answers, and little enough that what waits in the
cache does not push out what is about to be read. Used only where blocks come from a store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sheaf.order.gather import Gatherer

AHEAD_BYTES = 64 << 20
AHEAD_STEPS = 256  # looking at a step that is here costs little, but not nothing
SHARE = 8  # of a cache at most one part in so many


class Split(NamedTuple):
    """How a global step is split. rows: of the pack, its samples by slot. slots_r: by rank, the slots of its samples.
    most_r: by rank, how many samples it has of a whole step at most."""

    rank: int
    rows: NDArray[np.int64]
    slots_r: list[NDArray[np.int64]]
    most_r: list[int]


class Plan(NamedTuple):
    """One rank's part of a step, before it is read. rows: int64 (n,), of the pack (padded: its runs). slots: int64
    (n,), in the step. width: of the batch. valid_tokens, inputs, split: as in Batch."""

    step: int
    rows: NDArray[np.int64]
    slots: NDArray[np.int64]
    valid_tokens: int
    inputs: int
    width: int
    split: Split


def read_ahead(plans: Iterator[Plan], gatherer: Gatherer) -> Generator[Plan]:
    """The same plans, each a while after its blocks were asked for. What was asked for in vain is called off."""
    most = min(AHEAD_BYTES, gatherer.cache_bytes // SHARE)
    waiting: deque[tuple[Plan, int, list[Future[None]]]] = deque()
    total = 0
    try:
        for plan in plans:
            size, begun = gatherer.ahead(plan.rows)
            waiting.append((plan, size, begun))
            total += size
            while total > most or len(waiting) > AHEAD_STEPS:
                done, size, _ = waiting.popleft()
                total -= size
                yield done
        while waiting:
            yield waiting.popleft()[0]
    finally:
        for _, _, begun in waiting:
            for future in begun:
                future.cancel()
