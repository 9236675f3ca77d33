"""Shingles: what near duplicates have in common. A text's shingles are all runs of five successive words, each as one
64-bit hash; a text of one to four words has a single shingle of all of them, a text without words has none.

Two texts are as similar as their sets of shingles: J = |A ∩ B| / |A ∪ B| (Jaccard; for texts Broder, "On the
resemblance and containment of documents", 1997). Cost: a multiplication for each word of the window; 8 bytes a shingle.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sheaf.kernel import kernel
from sheaf.prepare import words

WORDS = 5
_PRIME = np.uint64(0xD6E8FEB86659FD93)
_MIX_1, _MIX_2, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)


def of(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """uint64 (shingles,) of all texts in reading order, repeats included, and int64 (texts + 1,): where each begins."""
    found, first = words.hashes(texts)
    shingles = np.empty(len(found), np.uint64)
    starts = np.zeros(len(first), np.int64)
    count = _join(found, first, shingles, starts)
    return shingles[:count], starts


def sets(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Like `of`, each text's shingles once and in ascending order."""
    shingles, starts = of(texts)
    count = _distinct(shingles, starts)
    return shingles[:count], starts


@kernel
def _mixed(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> _SHIFT)) * _MIX_1
    h = (h ^ (h >> _SHIFT)) * _MIX_2
    return h ^ (h >> _SHIFT)


@kernel
def _join(
    found: NDArray[np.uint64], first: NDArray[np.int64], shingles: NDArray[np.uint64], starts: NDArray[np.int64]
) -> int:
    """Hash every window of words; returns the number of shingles."""
    count = 0
    for row in range(len(first) - 1):
        start, n = first[row], first[row + 1] - first[row]
        size = min(n, WORDS)
        if n > 0:
            for i in range(start, start + n - size + 1):
                h = np.uint64(size)
                for j in range(size):
                    h = h * _PRIME + found[i + j]
                shingles[count] = _mixed(h)
                count += 1
        starts[row + 1] = count
    return count


@kernel
def _distinct(shingles: NDArray[np.uint64], starts: NDArray[np.int64]) -> int:
    """Sort each text's shingles and leave out repeats, in place; returns how many are left."""
    count = 0
    start = starts[0]
    for row in range(len(starts) - 1):
        end = starts[row + 1]
        own = shingles[start:end]
        own.sort()
        begin = count
        for i in range(len(own)):
            if i == 0 or own[i] != shingles[count - 1]:
                shingles[count] = own[i]
                count += 1
        starts[row] = begin
        start = end
    starts[len(starts) - 1] = count
    return count
