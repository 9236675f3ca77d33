"""Split one global step over ranks so that all finish together.

A sample costs a·tokens + b·Σ run² (projections, and attention inside its documents). Samples go, the dearest first,
to the rank with the least work so far (longest processing time: within 4/3 of the optimum, Graham 1969), among the
ranks that may still take one: counts differ by at most one between ranks, because micro-batches have static shapes
and a rank with one more of them would keep all others waiting. Which samples a step holds never depends on this.
Cost: O(samples · ranks), with no communication; every rank computes the same answer, in integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sheaf.errors import UsageError
from sheaf.kernel import kernel

# A decoder layer spends about 24·h² FLOP on a token and 2·h on a (token, earlier token) pair, that is n²/2 · 4·h a
# run: as much attention as projections at n = 12·h. Taken at h = 1,024; the split is not sensitive to it.
EVEN_LENGTH = 12 * 1024


class EmptyStep(UsageError):
    """A global batch has fewer samples than there are ranks: a rank without work would stall its peers' collectives."""


def check_ranks(batch: int, world: int) -> None:
    """Raise EmptyStep unless every rank gets at least one sample of each global batch."""
    if batch < world:
        raise EmptyStep(
            f"a global batch of {batch} samples cannot be split over {world} ranks",
            why="a rank without a sample would stall the others",
            fix=f"raise the batch (train.batch_tokens) to at least {world} samples, or start at most {batch} ranks",
        )


def sample_cost(tokens: NDArray[np.int32], squares: NDArray[np.int64]) -> NDArray[np.int64]:
    """Relative cost of samples, from the columns of the pack."""
    return tokens.astype(np.int64) * EVEN_LENGTH + squares


def split_by_cost(cost_n: NDArray[np.int64], world: int) -> list[NDArray[np.int64]]:
    """For each rank the positions of its samples in the step, rising. cost_n: int64 (samples,)."""
    rank_n = _assign(cost_n, np.argsort(-cost_n, kind="stable"), world)
    by_rank = np.argsort(rank_n, kind="stable")
    return np.split(by_rank, np.searchsorted(rank_n[by_rank], np.arange(1, world)))


@kernel
def _assign(cost_n: NDArray[np.int64], dearest_first: NDArray[np.int64], world: int) -> NDArray[np.int64]:
    rank_n = np.empty(len(cost_n), np.int64)
    load, count = np.zeros(world, np.int64), np.zeros(world, np.int64)
    share, extra = len(cost_n) // world, len(cost_n) % world  # `extra` ranks may take one more than `share`
    for i in dearest_first:
        best = -1
        for r in range(world):
            is_open = count[r] < share or (count[r] == share and extra > 0)
            if is_open and (best < 0 or load[r] < load[best]):
                best = r
        if count[best] == share:
            extra -= 1
        count[best] += 1
        load[best] += cost_n[i]
        rank_n[i] = best
    return rank_n
