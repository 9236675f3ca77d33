"""How hot loops are compiled: numba, GIL released, machine code kept on disk for the next process.

It lies beside the source file, else (a read-only install) in the user's cache folder, or in NUMBA_CACHE_DIR
(`kernel_code`). Where none of them can be written we compile once a process, a few seconds, rather than fail. Trap:
machine code is made anew when a kernel's own file has changed, so a kernel calls kernels of its own file, or of those
that `kernel_with` names.

Cost: nothing until a kernel is first called; then 0.4 s to load numba, once a process, and some 5 ms a kernel whose
machine code is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
    """As `kernel`, of a function that calls kernels of these modules: when one of their files has changed, it is
    compiled anew."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        return cast(Callable[..., R], Kernel(function, modules))

    return decorate


def fast_kernel(function: Callable[..., R]) -> Callable[..., R]:
    """As `kernel`, of a function whose sums of floats may be taken in another order, as vectors need it; what is not a
    number, or infinite, stays so."""
    return cast(Callable[..., R], Kernel(function, fast={"reassoc", "contract", "arcp", "nsz"}))


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

    def __init__(
        self, function: Callable[..., Any], others: Sequence[ModuleType] = (), fast: Collection[str] = ()
    ) -> None:
        """fast: LLVM's names of what may be done to floats."""
        self.__doc__, self.__name__ = function.__doc__, function.__name__
        self._function, self._fast = function, fast
        self._files = [function.__code__.co_filename, *(str(other.__file__) for other in others)]
        self._loaded = _times(self._files)

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    @cached_property
    def compiled(self) -> Any:
        """numba's dispatcher."""
        from numba import njit  # here: most processes that import a kernel call none

        from sheaf.kernel_code import KeptCode

        dispatcher: Any = njit(nogil=True, fastmath=set(self._fast))(self._function)
        # A file that has changed since it was loaded is not what would be kept under its name.
        if self._loaded and self._loaded == _times(self._files):
            dispatcher._cache = KeptCode(self._function, [Path(file) for file in self._files], self._fast)
        return dispatcher

    @property
    def _numba_type_(self) -> Any:
        """What numba takes this for where another kernel calls it."""
        return self.compiled._numba_type_


def _times(files: Sequence[str]) -> list[int]:
    """When each was changed; nothing where one is no file."""
    try:
        return [Path(file).stat().st_mtime_ns for file in files]
    except OSError:
        return []


@kernel
def _nothing(number: int) -> int:
    return number
