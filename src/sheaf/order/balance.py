"""Split one global step over ranks so that all finish together, and a rank's part into forward passes.

A sample costs a·tokens + b·Σ run² (projections, and attention inside its documents). Samples go, the dearest first,
to the rank that would finish soonest with it (longest processing time: by itself within 4/3 of the optimum on equal
ranks, Graham 1969; within 2 on unequal ones, Gonzalez, Ibarra and Sahni 1977), among the ranks that may still take
one. A rank takes its share by speed of their number, rounded down or up: on equal ranks counts differ by at most one,
because passes have static shapes and a rank with one more of them would keep all others waiting. A rank that is twice
as fast gets twice the samples and the work; a rank so slow that it gets none takes part with an empty batch. Which
samples a step holds never depends on this, and since its loss is divided by the predictions of the whole step, nor
does the gradient.

Cost: O(samples · ranks), with no communication; every rank computes the same answer, from the same speeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sheaf.errors import UsageError
from sheaf.kernel import kernel

# A decoder layer spends about 24·h² FLOP on a token and 2·h on a (token, earlier token) pair, that is n²/2 · 4·h a
# run: as much attention as projections at n = 12·h. Taken at h = 1,024; the split is not sensitive to it.
EVEN_LENGTH = 12 * 1024


class EmptyStep(UsageError):
    """A global batch has fewer samples than there are ranks: some of them would never have any work."""


def check_ranks(batch: int, world: int) -> None:
    """Raise EmptyStep unless there is a sample for every rank in each global batch."""
    if batch < world:
        raise EmptyStep(
            f"a global batch of {batch} samples cannot be split over {world} ranks",
            why="some ranks would never have a sample",
            fix=f"raise the batch (train.batch_tokens) to at least {world} samples, or start at most {batch} ranks",
        )


def check_speeds(speeds: Sequence[float] | None, world: int) -> tuple[float, ...] | None:
    """The speeds as numbers; None where all are equal. Raises UsageError unless each rank has a positive one."""
    if speeds is None:
        return None
    if len(speeds) != world or not all(math.isfinite(speed) and speed > 0 for speed in speeds):
        raise UsageError(
            f"{list(speeds)} are no speeds of {world} ranks",
            fix="give each rank a positive number: 2.0 for one that is twice as fast as one with 1.0",
        )
    return None if len(set(speeds)) == 1 else tuple(map(float, speeds))


def sample_cost(tokens: NDArray[np.int64], squares: NDArray[np.int64]) -> NDArray[np.int64]:
    """Relative cost of samples: of the token positions that are computed, and of the squares of their runs."""
    return tokens * EVEN_LENGTH + squares


def most_samples(samples: int, world: int, speeds: tuple[float, ...] | None = None) -> list[int]:
    """How many of a step's samples each rank gets at most: its share by speed, rounded up."""
    return [low + more for low, more in _shares(samples, world, speeds)]


def split_by_cost(
    cost_n: NDArray[np.int64], world: int, speeds: tuple[float, ...] | None = None
) -> list[NDArray[np.int64]]:
    """For each rank the positions of its samples in the step, rising.

    cost_n: int64 (samples,). speeds: of each rank, relative; None: all are equal.
    """
    shares = _shares(len(cost_n), world, speeds)
    low_r, more_r = (np.array(column, np.int64) for column in zip(*shares, strict=True))
    slowness_r = 1.0 / np.array(speeds or (1.0,) * world)
    rank_n = _assign(cost_n, np.argsort(-cost_n, kind="stable"), low_r, more_r, slowness_r)
    by_rank = np.argsort(rank_n, kind="stable")
    return np.split(by_rank, np.searchsorted(rank_n[by_rank], np.arange(1, world)))


def imbalance(cost_n: NDArray[np.int64], split: Sequence[NDArray[np.int64]], speeds: tuple[float, ...] | None) -> float:
    """How much longer the slowest rank works than if the work could be cut at will: 1 is perfect."""
    speed_r = np.array(speeds or (1.0,) * len(split))
    seconds_r = np.array([cost_n[part].sum() for part in split]) / speed_r
    ideal = cost_n.sum() / speed_r.sum()
    return float(seconds_r.max() / ideal) if ideal > 0 else 1.0


def passes_of_samples(cost_n: NDArray[np.int64], passes: int) -> list[NDArray[np.int64]]:
    """A rank's samples in so many forward passes of equal cost, their number equal within one; some may be empty."""
    if passes == 1:
        return [np.arange(len(cost_n))]
    return split_by_cost(cost_n, passes)


def passes_of_buckets(rows_n: NDArray[np.int64], width_n: NDArray[np.int64], positions: int) -> list[NDArray[np.int64]]:
    """A rank's buckets in forward passes of at most `positions` token positions each, where a bucket is no larger.

    Buckets of about the same width go together, since all rows of a pass are as wide as its widest.
    """
    passes: list[list[int]] = []
    rows = width = 0
    for i in np.argsort(-width_n, kind="stable").tolist():
        if passes and (rows + int(rows_n[i])) * width <= positions:
            passes[-1].append(i)
            rows += int(rows_n[i])
        else:
            passes.append([i])
            rows, width = int(rows_n[i]), int(width_n[i])
    return [np.array(sorted(one), np.int64) for one in passes]


@lru_cache(maxsize=64)
def _shares(samples: int, world: int, speeds: tuple[float, ...] | None) -> tuple[tuple[int, int], ...]:
    """Of each rank: its share rounded down, and 1 if it may be rounded up."""
    if speeds is None:
        low, extra = divmod(samples, world)
        return ((low, int(extra > 0)),) * world
    total = sum(map(Fraction, speeds))
    exact = [samples * Fraction(speed) / total for speed in speeds]
    return tuple((math.floor(share), int(share != math.floor(share))) for share in exact)


@kernel
def _assign(
    cost_n: NDArray[np.int64],
    dearest_first: NDArray[np.int64],
    low_r: NDArray[np.int64],
    more_r: NDArray[np.int64],
    slowness_r: NDArray[np.float64],
) -> NDArray[np.int64]:
    rank_n = np.empty(len(cost_n), np.int64)
    load_r, count_r = np.zeros(len(low_r), np.int64), np.zeros(len(low_r), np.int64)
    extra = len(cost_n) - np.sum(low_r)  # so many ranks take one more than their share rounded down
    for i in dearest_first:
        best, soonest = -1, 0.0
        for r in range(len(low_r)):
            is_open = count_r[r] < low_r[r] or (count_r[r] == low_r[r] and more_r[r] > 0 and extra > 0)
            end = (load_r[r] + cost_n[i]) * slowness_r[r]
            if is_open and (best < 0 or end < soonest):
                best, soonest = r, end
        if count_r[best] == low_r[best]:
            extra -= 1
        count_r[best] += 1
        load_r[best] += cost_n[i]
        rank_n[i] = best
    return rank_n
