"""The flat files of a corpus (tokens, and what of them is predicted), each block checked before its first use.

A `TokenFile` is mapped memory with two numbers a block: `state`, odd while the block's bytes are there and raised
whenever that changes, and `seen`, the state at which this process last compared the bytes with their digest. A block
may be used while both are equal; what is used goes out only if they still are afterwards. So whoever may take bytes
away (the cache of a remote workspace, `block_cache.py`) needs no lock that readers wait for.

A block that is not what was written is fetched again where the workspace has a store; else it is *damaged*: `check`
names it, `read` raises, the loader trains on other samples (`order/replace.py`). Nothing here is done a token: `check`
costs one read and one hash of 64 KiB for each block, once a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sheaf.corpus.blocks import BLOCK_BYTES, Table, blocks_of
from sheaf.errors import CorruptStore, EnvironmentProblem

DAMAGED = ".damaged"  # in the folder of a file that was found damaged: what `sheaf prepare` looks into
NEVER = np.uint32(2**32 - 1)  # of a block that was not compared yet: a state that none has
TRIES = 100  # to have some blocks at once, where a cache takes them away again

MENDED = 3  # times that a block is brought again; a disk may not keep what it is given

ReadRange = Callable[[int, int], bytes]  # bytes [from, to) of a file where it comes from


ReadBlock = Callable[[int], Any]  # a block's bytes, fewer where the file ends before; until the next one is read


@dataclass(frozen=True, slots=True)
class Damage:
    """A block that cannot be had as it was written. bytes: [from, to) of the file."""

    file: str
    block: int
    bytes: tuple[int, int]
    why: str

    def error(self) -> CorruptStore:
        return CorruptStore(
            "a block of the corpus is damaged",
            where=f"{self.file}, block {self.block}, bytes {self.bytes[0]} to {self.bytes[1]}",
            why=self.why,
            fix="run `sheaf prepare`: it makes the file again from its shard, with the same tokens",
        )


class Holder(Protocol):
    """Who keeps a file's bytes: `data` uint8 (size,), `state` uint32 and `used` int64 (blocks,) as said above; used:
    when a block was last wanted, or nothing where nobody asks. lasting: bytes that are there stay there; else
    cache_bytes is how many of all files may be there."""

    data: NDArray[np.uint8]
    state: NDArray[np.uint32]
    used: NDArray[np.int64]
    lasting: bool
    cache_bytes: int

    def reading(self) -> AbstractContextManager[ReadBlock]:
        """Reads blocks by way of the file: what a disk cannot give is an OSError then, not the process' death."""
        ...

    def drop(self, block: int, state: int) -> None:
        """Its bytes, at this state, are not what they should be."""
        ...

    def bring(self, blocks: Sequence[int]) -> None:
        """Have these blocks there, from where the file comes from; what cannot be had right stays away."""
        ...

    def ahead(self, blocks: Sequence[int]) -> list[Future[None]]:
        """Begin to bring them. What has not begun yet may be cancelled."""
        ...


class TokenFile:
    """A flat file, read like an array: `file[a:b]`, `len(file)`, `np.asarray(file)`. Raises CorruptStore for what is
    damaged. data, state, seen, used: for the gathering kernel."""

    def __init__(self, path: Path, table: Table, kind: DTypeLike, holder: Holder) -> None:
        self.path, self.table, self.dtype, self._holder = path, table, np.dtype(kind), holder
        if table.size % self.dtype.itemsize:
            raise CorruptStore(
                "a token file ends within a token", where=str(path), why=f"{table.size} bytes", fix="prepare again"
            )
        self.data, self.state, self.used = holder.data, holder.state, holder.used
        self.seen = np.full(blocks_of(table.size), NEVER, np.uint32)
        self.lasting, self.cache_bytes = holder.lasting, holder.cache_bytes
        self.family: tuple[TokenFiles, str, int] | None = None  # where another process finds it
        self._damaged: dict[int, Damage] = {}

    def __len__(self) -> int:
        return self.table.size // self.dtype.itemsize

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return self.read(start, max(start, stop))[::step]
        start = range(len(self))[int(at)]
        return self.read(start, start + 1)[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self.read(0, len(self))
        return whole.astype(self.dtype if dtype is None else dtype, copy=bool(copy))

    def __reduce__(self) -> tuple[Any, ...]:
        if self.family is None:
            raise TypeError("a file that belongs to no corpus cannot be sent to another process")
        return _member, self.family

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Items [start, stop), checked: a read-only view, or a copy where the bytes may go away."""
        blocks = self.blocks(start, stop)
        for _ in range(TRIES):
            for damage in self.check(blocks):
                raise damage.error()
            items = self.data.view(self.dtype)[start:stop]
            if self.lasting:
                return items
            items = items.copy()
            if (self.state[blocks] == self.seen[blocks]).all():
                return items
        raise contested(self.path)

    def blocks(self, start: int, stop: int) -> NDArray[np.int64]:
        """The blocks in which items [start, stop) lie."""
        size = self.dtype.itemsize
        return np.arange(start * size // BLOCK_BYTES, blocks_of(stop * size) if stop > start else 0)

    def check(self, blocks: NDArray[np.int64]) -> list[Damage]:
        """Compare those that have changed or come since they were last compared; returns the damaged ones."""
        unseen = blocks[self.state[blocks] != self.seen[blocks]].tolist()
        if not unseen:
            return []
        unknown = [block for block in unseen if block not in self._damaged]
        self._holder.bring([block for block in unknown if self.state[block] % 2 == 0])
        for block in self._look(unknown):
            if (why := self._wrong(block)) is not None:
                self._damaged[block] = Damage(str(self.path), block, self.table.span(block), why)
                with contextlib.suppress(OSError):
                    (self.path.parent / DAMAGED).touch()
        return [self._damaged[block] for block in unseen if block in self._damaged]

    def ahead(self, blocks: NDArray[np.int64]) -> list[Future[None]]:
        """Begin to bring those of the blocks that are not there."""
        away = blocks[self.state[blocks] % 2 == 0].tolist()
        return self._holder.ahead(away) if away else []

    def _look(self, blocks: list[int]) -> list[int]:
        """Compare blocks that are there; returns those that are not, or not right. The file is opened once for all."""
        right: list[tuple[int, int]] = []
        with self._holder.reading() as read:
            for block, state in zip(blocks, self.state[blocks].tolist(), strict=True):
                with contextlib.suppress(OSError):
                    if state % 2 and self.table.holds(block, read(block)):
                        right.append((block, state))
        for block, state in right:
            if int(self.state[block]) == state:
                self.seen[block] = state
        return [block for block in blocks if self.seen[block] != self.state[block]]

    def _wrong(self, block: int) -> str | None:
        """None once the block's bytes are there and right; else what is wrong with them."""
        why, dropped = "what the store gives has another digest than the table says", 0
        for _ in range(TRIES):
            state = int(self.state[block])
            if state % 2 == 0:
                self._holder.bring([block])
                if int(self.state[block]) == state or dropped == MENDED:
                    return why
                continue
            try:
                with self._holder.reading() as read:
                    right = self.table.holds(block, read(block))
                problem = "its digest differs from the one in the table beside it"
            except OSError as error:
                right, problem = False, f"the disk does not give it: {error.strerror or error}"
            if int(self.state[block]) != state:  # taken away meanwhile
                continue
            if right:
                self.seen[block] = state
                return None
            why, dropped = problem, dropped + 1
            self._holder.drop(block, state)
        raise contested(self.path)


class LocalFile:
    """A whole file on this machine. origin: reads where it comes from, if it comes from a store; damage is mended."""

    lasting, cache_bytes = True, 0

    def __init__(self, path: Path, table: Table, origin: ReadRange | None) -> None:
        size = path.stat().st_size if path.exists() else None
        if size != table.size:
            raise CorruptStore(
                "a file of the workspace is missing, or has another size than when it was written",
                where=str(path),
                why=f"{size} bytes, written were {table.size}",
                fix=f"delete {path.parent} and prepare again",
            )
        self._path, self._table, self._origin = path, table, origin
        self.data, self._number = mapped(path, table.size)
        self.state = np.ones(len(table.digests), np.uint32)
        self.used = np.zeros(0, np.int64)

    @contextlib.contextmanager
    def reading(self) -> Generator[ReadBlock]:
        with self._mapped_one(os.O_RDONLY) as fd:
            yield block_reader(fd, self._table) if fd is not None else lambda b: self.data[slice(*self._table.span(b))]

    def drop(self, block: int, state: int) -> None:
        self.state[block] = state + 1

    def bring(self, blocks: Sequence[int]) -> None:
        """Right bytes over wrong ones: whoever reads them at the same time sees one or the other, and checks."""
        if self._origin is None:
            return
        for block in blocks:
            start, stop = self._table.span(block)
            found = self._origin(start, stop)
            if not self._table.holds(block, found):
                continue
            with self._mapped_one(os.O_WRONLY) as fd:
                if fd is not None:
                    os.pwrite(fd, found, start)
                    self.state[block] += 1

    def ahead(self, blocks: Sequence[int]) -> list[Future[None]]:
        return []

    @contextlib.contextmanager
    def _mapped_one(self, flags: int) -> Generator[int | None]:
        """The file that is mapped; None if another has its name now, as when it was made again meanwhile."""
        try:
            fd = os.open(self._path, flags | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            yield fd if file_number(fd) == self._number else None
        finally:
            os.close(fd)


class TokenFiles:
    """All flat files of a version. tokens, losses: by number of shard; a loss is None where all is predicted."""

    def __init__(self, where: str, name: str, tokens: list[TokenFile], losses: list[TokenFile | None]) -> None:
        self.where, self.name, self.tokens, self.losses = where, name, tokens, losses
        for kind, files in (("tokens", tokens), ("losses", losses)):
            for number, file in enumerate(files):
                if file is not None:
                    file.family = (self, kind, number)

    def __reduce__(self) -> tuple[Any, ...]:
        return _family, (self.where, self.name)


def block_reader(fd: int, table: Table) -> ReadBlock:
    """Into one buffer, again and again."""
    buffer = memoryview(bytearray(BLOCK_BYTES))

    def read(block: int) -> memoryview:
        start, stop = table.span(block)
        return buffer[: os.preadv(fd, [buffer[: stop - start]], start)]

    return read


def mapped(path: Path, size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A file's bytes, and which file it is."""
    with path.open("rb") as file:
        data = np.asarray(np.memmap(file, np.uint8, "r", shape=(size,))) if size else np.zeros(0, np.uint8)
        return data, file_number(file.fileno())


def file_number(fd: int) -> tuple[int, int]:
    """The same for the same file, whatever it is called now."""
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino


def contested(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the cache of the remote workspace is too small for what is read at once",
        where=str(path),
        why=f"blocks that were brought were taken away again, {TRIES} times",
        fix="allow it more with SHEAF_CACHE_GB, or start fewer jobs on this machine",
    )


def _family(where: str, name: str) -> TokenFiles:
    from sheaf.corpus.version import CorpusVersion  # which opens these files
    from sheaf.corpus.workspace import Workspace

    return CorpusVersion.named(Workspace.at(where), name).files


def _member(family: TokenFiles, kind: str, number: int) -> TokenFile:
    return getattr(family, kind)[number]
