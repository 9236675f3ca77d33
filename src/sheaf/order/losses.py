"""Which tokens are to be predicted: of a conversation only what the assistant said, of everything else all.

A corpus keeps it beside the tokens, a byte a token (0 or 1), for shards that hold conversations. Packing and order do
not change by it; labels, the number by which a loss is divided, and evaluation do. Cost: one pass over the bytes when
a pack is made, one byte read a token when a batch is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.tokens import TokenFile
from sheaf.errors import CorruptStore
from sheaf.kernel import kernel

Loss = NDArray[np.uint8] | TokenFile | None  # of one token file; None: every token of it is predicted
STRETCH = 1 << 20  # flags that are read at once


def predicted(
    losses: Sequence[Loss], shard: NDArray[np.int32], first: NDArray[np.int64], length: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many of the tokens [first, first + length) of a shard's file are to be predicted: int64 (stretches,)."""
    result = np.array(length, np.int64)
    for number, loss in enumerate(losses):
        here = np.flatnonzero(shard == number) if loss is not None else np.zeros(0, np.int64)
        if loss is None or not len(here):
            continue
        begin, count = np.ascontiguousarray(first[here], np.int64), result[here]
        if int(begin.min()) < 0 or int((begin + count).max()) > len(loss):
            raise CorruptStore(
                "the index of a document points outside its file of what is predicted",
                where=f"token file {number}",
                fix="prepare again",
            )
        result[here] = _counts(loss, begin, count)
    return result


def as_bytes(loss: NDArray[np.uint8] | TokenFile) -> NDArray[np.uint8]:
    """A plain read-only view, whatever the file was opened as: numba compiles once for each kind. Not checked."""
    view = np.asarray(loss.data if isinstance(loss, TokenFile) else loss).view()
    view.flags.writeable = False
    return view


def _counts(
    loss: NDArray[np.uint8] | TokenFile, begin: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many flags are set in [begin, begin + count). A file of a corpus is checked, and read piece by piece."""
    if not isinstance(loss, TokenFile):
        return _count(as_bytes(loss), begin, count)
    result = np.zeros(len(begin), np.int64)
    by = np.argsort(begin, kind="stable")
    piece = (begin[by] // STRETCH, (begin[by][1:] - (begin + count)[by][:-1] > STRETCH // 16).cumsum())
    cuts = np.flatnonzero((np.diff(piece[0]) != 0) | (np.diff(piece[1], prepend=0) != 0)) + 1
    for here in np.split(by, cuts):
        first, last = int(begin[here].min()), int((begin + count)[here].max())
        result[here] = _count(as_bytes(loss.read(first, last)), begin[here] - first, count[here])
    return result


@kernel
def _count(loss: NDArray[np.uint8], first: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    counts = np.zeros(len(first), np.int64)
    for i in range(len(first)):
        for flag in loss[first[i] : first[i] + length[i]]:
            counts[i] += flag
    return counts
