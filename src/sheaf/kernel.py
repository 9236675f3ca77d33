"""How hot loops are compiled: numba, GIL released, machine code kept on disk for the next process.

numba keeps it beside the source file, else (a read-only install) in the user's cache folder or in NUMBA_CACHE_DIR.
Where none of them can be written we compile once a process, a few seconds, rather than fail. Trap: numba notices a
change of a kernel's own file only, so a kernel calls kernels of its own file, or of those that `kernel_with` names.

Cost: nothing until a kernel is first called; then 0.4 s to load numba, once a process, and some 5 ms a kernel whose
machine code is kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R")
T = TypeVar("T", bound=np.generic)


def kernel(function: Callable[..., R]) -> Callable[..., R]:
    """Compile `function` at its first call. It may run beside Python threads: it holds no GIL."""
    return cast(Callable[..., R], Kernel(function))


def kernel_with(*modules: ModuleType) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """As `kernel`, of a function that calls kernels of these modules: when one of their files has changed, the
    function's own file counts as changed too."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        return cast(Callable[..., R], Kernel(function, modules))

    return decorate


def read_only(array: NDArray[T]) -> NDArray[T]:
    """A view that nobody can write to. Buffers of Arrow may be of either kind, and numba compiles once for each."""
    view = array.view()
    view.flags.writeable = False
    return view


def load_numba() -> None:
    """Load now what numba puts off until a kernel is first called: for modules whose users will call one anyway, and
    count on it that what comes after imports is quick."""
    _nothing(0)


class Kernel:
    """A function that is compiled when it is first called, from Python or from another kernel."""

    def __init__(self, function: Callable[..., Any], others: Sequence[ModuleType] = ()) -> None:
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self._function, self._others = function, others

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    @cached_property
    def compiled(self) -> Any:
        """numba's dispatcher."""
        from numba import njit  # here: most processes that import a kernel call none

        _be_as_new(Path(self._function.__code__.co_filename), [Path(str(other.__file__)) for other in self._others])
        try:
            return njit(cache=True, nogil=True)(self._function)
        except RuntimeError:  # "no locator available": no place to keep the machine code
            return njit(nogil=True)(self._function)

    @property
    def _numba_type_(self) -> Any:
        """What numba takes this for where another kernel calls it."""
        return self.compiled._numba_type_


def _be_as_new(file: Path, others: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):  # where nothing can be written, nothing was changed
        newest = max((other.stat().st_mtime_ns for other in others), default=0)
        if newest > file.stat().st_mtime_ns:
            os.utime(file, ns=(newest, newest))


@kernel
def _nothing(number: int) -> int:
    return number
