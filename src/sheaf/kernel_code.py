"""Machine code of kernels on disk: numba's own cache, with three differences.

numba looks only where it can write; a process that may write nothing (the sandbox's child) finds here what others have
kept. What can't be written, or not be read any more, is compiled again and fails nothing. And code is old when any of
the files that it was made of has changed, where numba asks for the function's own file.

It leans on classes that numba does not document (numba.core.caching); without them kernels would be compiled in each
process, which `tests/test_kernel.py` would see.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.misc.appdirs import AppDirs


class KeptCode(FunctionCache):
    """The compiled forms of one function. files: those whose code it holds, its own first."""

    def __init__(self, function: Callable[..., Any], files: Sequence[Path]) -> None:
        self._impl_class = functools.partial(_Form, _Place(function, files))
        super().__init__(function)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 whatever a damaged file makes of pickle: as if there were none
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


class _Form(CompileResultCacheImpl):
    def __init__(self, place: _Place, function: Callable[..., Any]) -> None:
        self._locator_classes = [place]
        super().__init__(function)


class _Place:
    """What numba calls a cache locator."""

    def __init__(self, function: Callable[..., Any], files: Sequence[Path]) -> None:
        self._line = str(function.__code__.co_firstlineno)
        self._files = files
        # Within a file two functions of one name differ in their line.
        self._folder = _folder(files[0], f"{files[0].stem}.{function.__qualname__}-{self._line}.")

    def from_function(self, function: Callable[..., Any], file: str) -> _Place:
        return self

    def get_cache_path(self) -> str:
        return str(self._folder)

    def ensure_cache_path(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def get_source_stamp(self) -> str:
        return _digest(tuple(self._files))

    def get_disambiguator(self) -> str:
        return self._line


def _folder(file: Path, start: str) -> Path:
    """NUMBA_CACHE_DIR if that is set; else beside the source, if one can write there or code lies there whose name
    starts so; else the user's cache folder."""
    beside = file.parent / "__pycache__"
    apart = f"{file.parent.name}_{hashlib.sha256(bytes(file.parent)).hexdigest()[:40]}"
    told: str = cast(Any, numba.config).CACHE_DIR
    if told:
        return Path(told) / apart
    if _writable(beside) or next(beside.glob(f"{start}*.nbi"), None):
        return beside
    return Path(AppDirs(appname="numba", appauthor=False).user_cache_dir) / apart


@functools.cache
def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@functools.cache
def _digest(files: tuple[Path, ...]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
