"""Arrays for batches, in memory that is used again once no array, view or tensor of it is left.

Fresh memory costs a page fault for each 4 KB, and that is more than filling it. Who keeps a batch keeps its memory:
only what nobody holds any more is given out again, which weak references tell.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

KEPT = 8  # pieces of memory for later batches: more than are read ahead


class Memory:
    """Gives arrays. No locks: a fork at any moment is harmless."""

    def __init__(self) -> None:
        self._size = 0
        self._free: deque[memoryview] = deque(maxlen=KEPT)
        self._out: dict[int, weakref.ref[NDArray[np.int32]]] = {}  # by identity: arrays have no hash

    def take(self, size: int) -> NDArray[np.int32]:
        """int32 (size,), with anything in it."""
        if size > self._size:
            self._size = size
            self._free.clear()
        try:
            memory = self._free.pop()  # what was filled last is still in the cache
        except IndexError:
            memory = np.empty(self._size, np.int32).data
        # Over a memoryview, so that all views lead to this one array: numpy would have them lead to the owner else.
        whole = np.frombuffer(memory, np.int32)
        reference = weakref.ref(whole, lambda reference: self._take_back(reference, memory))
        self._out[id(reference)] = reference
        return whole[:size]

    def _take_back(self, reference: weakref.ref[NDArray[np.int32]], memory: memoryview) -> None:
        del self._out[id(reference)]
        if len(memory) == self._size:
            self._free.append(memory)
