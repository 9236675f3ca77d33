"""Machine code of kernels on disk: numba's cache of one function, with a store of our own.

numba looks only where it can write; a process that may write nothing (the sandbox's child) finds here what others have
kept. A file's name is a digest of all that its code depends on: the types of the arguments, the processor, numba's
version and options, the text of every file that it was made of, where numba asks for the function's own file. So there
is no index that processes could confuse, and nothing is ever old. What can't be written, or not be read any more, is
compiled again and fails nothing.

It leans on classes that numba does not document (numba.core.caching); without them kernels would be compiled in each
process, which `tests/test_kernel.py` would see.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

SUFFIX = ".nbc"


class KeptCode(FunctionCache):
    """The compiled forms of one function. files: those whose code it holds, its own first. options: of the compiler."""

    def __init__(self, function: Callable[..., Any], files: Sequence[Path], options: Iterable[str]) -> None:
        self._folders = _folders(files[0])
        self._start = f"{files[0].stem}.{function.__qualname__}-{function.__code__.co_firstlineno}."
        self._stamp = f"{numba.__version__} {sorted(options)} {_digest(tuple(files))}"
        self._impl_class = functools.partial(_Form, _Place(files[0], self._stamp))
        super().__init__(function)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        name = self._name_of(sig, target_context.codegen())
        for folder in self._folders:
            with contextlib.suppress(Exception):  # whatever a damaged file makes of pickle: as if there were none
                kept = pickle.loads((folder / name).read_bytes())  # noqa: S301  (code, which is there to be run)
                return self._impl.rebuild(target_context, kept)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        folder = next(filter(_writable, self._folders), None)
        if folder is None or not self._impl.check_cachable(data):
            return
        path = folder / self._name_of(sig, data.codegen)
        new = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            new.write_bytes(dumps(self._impl.reduce(data)))
            new.replace(path)
        except OSError:  # a full disk: it is compiled again
            new.unlink(missing_ok=True)

    def _name_of(self, sig: Any, codegen: Any) -> str:
        known = f"{self._stamp} {self._index_key(sig, codegen)!r}"
        return self._start + hashlib.sha256(known.encode()).hexdigest()[:32] + SUFFIX


class _Form(CompileResultCacheImpl):
    def __init__(self, place: _Place, function: Callable[..., Any]) -> None:
        self._locator_classes = [place]
        super().__init__(function)


class _Place:
    """What numba calls a cache locator. It asks for one, and uses no more of it than a file to complain about."""

    def __init__(self, file: Path, stamp: str) -> None:
        self._py_file, self._stamp = str(file), stamp

    def from_function(self, function: Callable[..., Any], file: str) -> _Place:
        return self

    def get_cache_path(self) -> str:
        return str(beside(Path(self._py_file)))

    def get_source_stamp(self) -> str:
        return self._stamp

    def get_disambiguator(self) -> str:
        return ""


def beside(file: Path) -> Path:
    """The first folder where the code of a file's kernels is looked for."""
    return file.parent / "__pycache__"


def _folders(file: Path) -> list[Path]:
    """NUMBA_CACHE_DIR if that is set; else beside the source, and the user's cache folder."""
    apart = f"{file.parent.name}_{hashlib.sha256(bytes(file.parent)).hexdigest()[:40]}"
    told: str = cast(Any, numba.config).CACHE_DIR
    if told:
        return [Path(told) / apart]
    return [beside(file), Path(AppDirs(appname="numba", appauthor=False).user_cache_dir) / apart]


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
