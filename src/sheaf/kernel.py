"""How hot loops are compiled: numba, GIL released, machine code kept on disk for the next process.

numba keeps it beside the source file, else (a read-only install) in the user's cache folder or in NUMBA_CACHE_DIR.
Where none of them can be written we compile once a process, a few seconds, rather than fail. Trap: numba notices a
change of a kernel's own file only, so a kernel calls kernels of its own file and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

R = TypeVar("R")


def kernel(function: Callable[..., R]) -> Callable[..., R]:
    """Compile `function` at its first call. It may run beside Python threads: it holds no GIL."""
    try:
        return cast(Callable[..., R], njit(cache=True, nogil=True)(function))
    except RuntimeError:  # "no locator available": no place to keep the machine code
        return cast(Callable[..., R], njit(nogil=True)(function))
