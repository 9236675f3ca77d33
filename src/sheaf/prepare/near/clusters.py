"""What near duplicates mean: clusters of a kept record and those that went because of it, and overlap of sources.

`of` is that of `greedy.Near`: the rank of the kept record that a record is similar to, or -1. Memory: as much as `of`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest(of: NDArray[np.int64], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The n largest clusters: ranks of their kept records, and sizes (the kept one counts), the largest first."""
    kept, dropped = np.unique(of[of >= 0], return_counts=True)
    order = np.lexsort((kept, -dropped))[:n]
    return kept[order], dropped[order] + 1


def members(of: NDArray[np.int64], kept: int) -> NDArray[np.int64]:
    """Ranks of the records that went because of this one, ascending."""
    return np.flatnonzero(of == kept)


def overlap(of: NDArray[np.int64], source: NDArray[np.int32], sources: int) -> NDArray[np.int64]:
    """int64 (sources, sources): how many records of the row's source went because of one of the column's source."""
    dropped = np.flatnonzero(of >= 0)
    pairs = source[dropped].astype(np.int64) * sources + source[of[dropped]]
    return np.bincount(pairs, minlength=sources * sources).reshape(sources, sources)
