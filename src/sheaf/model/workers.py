"""Independent pieces of one operator on threads, each thread computing alone.

ATen splits every operation over all cores and waits for the last: thousands of waits a step where operations are
small, and each costs a time slice whenever another process or thread holds a core. Here a thread takes a whole piece
through all its operations and there is one wait at the end. Operators release the interpreter's lock while they
compute. A piece is always computed by one thread, so its result does not depend on how many there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def for_each(work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
    """Do the work for every piece, on as many threads as torch uses; its errors are raised here. No gradients."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        with torch.no_grad():
            for piece in pieces:
                work(piece)
        return

    def alone(piece: Piece) -> None:
        # Grad mode belongs to a thread.
        with torch.no_grad():
            work(piece)

    for _ in _pool(torch.get_num_threads()).map(alone, pieces):
        pass


def _pool(threads: int) -> ThreadPoolExecutor:
    """One pool a process: a forked child has none of its parent's threads."""
    key = (os.getpid(), threads)
    with _lock:
        if key not in _pools:
            ready = threading.Barrier(threads + 1)
            pool = ThreadPoolExecutor(threads, "sheaf-tile", initializer=_begin, initargs=(ready,))
            for _ in range(threads):
                pool.submit(_nothing)
            ready.wait()
            # What a thread sets for itself, torch also takes as the default of threads to come.
            torch.set_num_threads(threads)
            _pools[key] = pool
        return _pools[key]


def _begin(ready: threading.Barrier) -> None:
    torch.set_num_threads(1)
    # A thread takes torch's default over when it first asks, and would forget its own: so it asks now.
    torch.get_num_threads()
    ready.wait()


def _nothing() -> None:
    pass
