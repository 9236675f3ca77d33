"""Blocks of a remote workspace's files, kept in a folder of this machine up to a size: for all ranks and jobs on it.

Each file has two here, named by the digests of its blocks: NAME.data, as long as the file but with holes where nothing
has been fetched, and NAME.index, mapped by everyone who reads it: `used` int64 and `state` uint32 a block, as said in
`tokens.py`. A fetched block is compared with its digest, written, and only then marked as there; whoever is killed in
between has lost that block's download and nothing else. To make room the least recently wanted blocks are first marked
as away and then cut out of the file (a hole gives the disk its space back). Readers hold no lock: they look at the
state again after they have copied.

Two locks, both files' and so gone with their holder: `lock`, held by who writes a block and makes room for it; and the
byte of NAME.index with the block's number, held by who fetches it, so that the ranks of a machine fetch it once. Blocks
that lie near each other are one request; WORKERS requests are under way at once. Cost: one request for 64 KiB to 1 MiB;
12 bytes of index a block; making room reads the whole index once for each 1/16 of the size.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import threading
import time
import weakref
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.corpus.blocks import BLOCK_BYTES, Table, blocks_of
from sheaf.corpus.tokens import ReadBlock, ReadRange, block_reader, contested, file_number, mapped
from sheaf.errors import EnvironmentProblem, UsageError
from sheaf.files import digest_of, disk_errors, user_cache

SIZE = "SHEAF_CACHE_GB"
WORKERS = 16  # requests at once: a store answers in some 50 ms whatever the size
TOGETHER = 16  # blocks of a request at most: 1 MiB
GAP = 2  # blocks that are there, or not wanted, are fetched along if no more than these lie between two wanted ones
PATIENCE_SECONDS = 30.0  # for another process that fetches the same block; then it is fetched twice
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of fallocate(2)
_libc: Any = ctypes.CDLL(None, use_errno=True)


class BlockCache:
    """The folder. bytes: the most that its blocks may take. Safe for threads, processes and forks."""

    def __init__(self, folder: Path, bytes: int) -> None:
        self.folder, self.bytes = folder, bytes
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._usage = _mapped(folder / "usage", 8).view(np.int64)
        self._open()
        with self._locked():
            self._usage[0] = sum(int((state % 2).sum()) for _, _, state in self._indices()) * BLOCK_BYTES
        _caches.add(self)

    def _open(self) -> None:
        """What a forked child must have of its own: locks, threads, and what they are about."""
        with disk_errors(self.folder):
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._mutex = threading.Lock()
        self._coming: dict[tuple[str, int], Future[None]] = {}
        self._coming_mutex = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def start(self, file: CachedFile, blocks: Sequence[int], together: int) -> list[Future[None]]:
        """Begin to fetch these blocks; those that are under way already are waited for along with them."""
        started: dict[Future[None], list[int]] = {}
        with self._coming_mutex:
            known = {b: self._coming[file.name, b] for b in blocks if (file.name, b) in self._coming}
            new = [b for b in blocks if b not in known]
            if new and self._pool is None:
                self._pool = ThreadPoolExecutor(WORKERS, "sheaf-fetch")
            for first, last in stretches(new, together, len(file.state)):
                stretch = [b for b in range(first, last) if (file.name, b) not in self._coming]
                assert self._pool is not None
                future = self._pool.submit(self._fetch, file, stretch)
                started[future] = stretch
                self._coming |= dict.fromkeys(((file.name, b) for b in stretch), future)
        for future, stretch in started.items():
            future.add_done_callback(lambda _, stretch=stretch: self._came(file, stretch))
        return [*dict.fromkeys(known.values()), *started]

    def _came(self, file: CachedFile, blocks: Sequence[int]) -> None:
        with self._coming_mutex:
            for b in blocks:
                self._coming.pop((file.name, b), None)

    def _fetch(self, file: CachedFile, blocks: list[int]) -> None:
        with file.fetching(blocks[0], blocks[-1] + 1):
            away = [b for b in blocks if file.state[b] % 2 == 0]
            if away:
                self._store(file, file.download(away[0], away[-1] + 1))

    def _store(self, file: CachedFile, found: dict[int, bytes]) -> None:
        with self._locked(), disk_errors(self.folder):
            new = [b for b in found if file.state[b] % 2 == 0]
            self._make_room(len(new) * BLOCK_BYTES)
            with file.opened() as fd:
                for block in new:
                    os.pwrite(fd, found[block], block * BLOCK_BYTES)
                    file.used[block] = time.time_ns()
                    file.state[block] += 1
                    self._usage[0] += BLOCK_BYTES

    def take_away(self, file: CachedFile, block: int, state: int) -> None:
        with self._locked():
            if int(file.state[block]) == state:
                file.state[block] = state + 1
                self._usage[0] -= BLOCK_BYTES

    def _make_room(self, wanted: int) -> None:
        """Under the lock: have the new bytes fit, by taking away what was not wanted for longest."""
        if int(self._usage[0]) + wanted <= self.bytes:
            return
        if wanted > self.bytes:
            raise contested(self.folder)
        indices = list(self._indices())
        there = [np.flatnonzero(state % 2) for _, _, state in indices]
        used = np.concatenate([used[at] for (_, used, _), at in zip(indices, there, strict=True)])
        file = np.repeat(np.arange(len(indices)), [len(at) for at in there])
        block = np.concatenate(there) if there else np.zeros(0, np.int64)
        total = len(block) * BLOCK_BYTES
        excess = -(-(total + wanted - self.bytes * 15 // 16) // BLOCK_BYTES)
        if excess > 0:
            oldest = np.argsort(used, kind="stable")[:excess]
            for number in np.unique(file[oldest]).tolist():
                path, _, state = indices[number]
                gone = np.sort(block[oldest[file[oldest] == number]])
                state[gone] += 1
                _cut_out(path.with_suffix(".data"), gone)
        self._usage[0] = total - max(0, min(excess, len(block))) * BLOCK_BYTES

    def _indices(self) -> Generator[tuple[Path, NDArray[np.int64], NDArray[np.uint32]]]:
        for path in sorted(self.folder.glob("*.index")):
            blocks = path.stat().st_size // 12
            if blocks:
                yield (path, *_index(path, blocks))

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        with self._mutex:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def after_fork(self) -> None:
        os.close(self._lock)  # shared with the parent, and a lock on it would be held by both
        self._open()


class CachedFile:
    """One file in the cache: a `Holder` for `tokens.TokenFile`. whole: of the corpus, whether the cache can hold it
    all; then its neighbours are fetched with a block, as they will be wanted too."""

    lasting = False

    def __init__(self, cache: BlockCache, table: Table, origin: ReadRange, *, whole: bool) -> None:
        self._cache, self._table, self._origin, self.cache_bytes = cache, table, origin, cache.bytes
        self._together = TOGETHER if whole else 1
        self.name = digest_of(table.size, table.digests.tobytes())
        path = cache.folder / f"{self.name}.data"
        with disk_errors(path):
            self.used, self.state = _index(path.with_suffix(".index"), blocks_of(table.size))
            self._path = path
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.fstat(fd).st_size < table.size:
                os.ftruncate(fd, table.size)
            os.close(fd)
            self.data, self._number = mapped(path, table.size)

    @contextlib.contextmanager
    def opened(self) -> Generator[int]:
        """The file, for a moment: a corpus may have more of them than a process may have open."""
        fd = self._open(self._path)
        try:
            if file_number(fd) != self._number:
                raise _removed(self._path)
            yield fd
        finally:
            os.close(fd)

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _removed(path) from None

    @contextlib.contextmanager
    def reading(self) -> Generator[ReadBlock]:
        with self.opened() as fd:
            yield block_reader(fd, self._table)

    def drop(self, block: int, state: int) -> None:
        self._cache.take_away(self, block, state)

    def bring(self, blocks: Sequence[int]) -> None:
        left = list(blocks)
        while left:
            try:
                for future in self._cache.start(self, left, self._together):
                    future.result()
                return
            except CancelledError:  # by somebody who had begun to fetch it ahead, and was closed
                left = [b for b in left if self.state[b] % 2 == 0]

    def ahead(self, blocks: Sequence[int]) -> list[Future[None]]:
        return self._cache.start(self, blocks, self._together)

    def download(self, first: int, last: int) -> dict[int, bytes]:
        """Those of the blocks [first, last) that are right where they come from, asked twice."""
        right: dict[int, bytes] = {}
        for _ in range(2):
            start = self._table.span(first)[0]
            found = memoryview(self._origin(start, self._table.span(last - 1)[1]))
            for block in range(first, last):
                a, b = self._table.span(block)
                if self._table.holds(block, found[a - start : b - start]):
                    right[block] = bytes(found[a - start : b - start])
            if len(right) == last - first:
                break
        return right

    @contextlib.contextmanager
    def fetching(self, first: int, last: int) -> Generator[None]:
        """Hold the fetching of blocks [first, last). A process that hangs is not waited for; a dead one holds none."""
        until = time.monotonic() + PATIENCE_SECONDS
        fd = self._open(self._path.with_suffix(".index"))
        try:
            while not _hold(fd, first, last) and time.monotonic() < until:
                if (self.state[first:last] % 2).all():
                    break
                time.sleep(0.01)
            yield
        finally:
            os.close(fd)  # which lets go


def _hold(fd: int, first: int, last: int) -> bool:
    """A lock on some bytes that belongs to this descriptor, not to the process: threads keep each other out too."""
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, first, last - first, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _removed(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        "the cache of the remote workspace was removed while it was read",
        where=str(path.parent),
        fix="run again; remove it only when nothing reads from it",
    )


_caches: weakref.WeakSet[BlockCache] = weakref.WeakSet()
_opened: dict[tuple[Path, int], BlockCache] = {}


def block_cache() -> BlockCache:
    """The one of this user on this machine. Raises UsageError if SHEAF_CACHE_GB is no size, EnvironmentProblem if its
    disk cannot give space back."""
    folder = user_cache("blocks")
    size = _size(folder)
    if (folder, size) not in _opened:
        _can_cut(folder)
        _opened[folder, size] = BlockCache(folder, size)
    return _opened[folder, size]


def _size(folder: Path) -> int:
    """What SHEAF_CACHE_GB says, else half of what is free on the disk when it is first asked for."""
    said = os.environ.get(SIZE, "")
    if not said:
        known = [size for place, size in _opened if place == folder]
        if known:
            return known[0]
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(folder)
        mine = sum(path.stat().st_blocks * 512 for path in folder.glob("*.data"))
        return (disk.f_bavail * disk.f_frsize + mine) // 2
    try:
        size = int(float(said) * 1e9)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageError(f"{SIZE} is no size", why=f"it is {said!r}", fix=f"{SIZE}=50 for 50 GB")
    return size


def _can_cut(folder: Path) -> None:
    path = folder / f".try-{os.getpid()}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(BLOCK_BYTES))
    try:
        _cut_out(path, np.zeros(1, np.int64))
    finally:
        path.unlink(missing_ok=True)


def stretches(blocks: Sequence[int], together: int, end: int) -> list[tuple[int, int]]:
    """Stretches [first, last) of at most TOGETHER blocks, in the order in which they are first wanted. together: blocks
    are taken in groups of so many, from a multiple of it on."""
    found: list[tuple[int, int]] = []
    place = {b: i for i, b in reversed(list(enumerate(blocks)))}
    for block in sorted({b // together * together for b in place}):
        first, last = block, min(block + together, end)
        if found and first - found[-1][1] <= GAP and last - found[-1][0] <= TOGETHER:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return sorted(found, key=lambda s: min(place[b] for b in range(*s) if b in place))


def _mapped(path: Path, size: int) -> NDArray[np.uint8]:
    """A file of this size, zeros at first, mapped for writing. Its space is taken: see corpus/columns.py."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(fd).st_size < size:
            os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)
    return np.asarray(np.memmap(path, np.uint8, "r+", shape=(size,)))


def _index(path: Path, blocks: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    if not blocks:
        return np.zeros(0, np.int64), np.zeros(0, np.uint32)
    mapped = _mapped(path, 12 * blocks)
    return mapped[: 8 * blocks].view(np.int64), mapped[8 * blocks :].view(np.uint32)


def _cut_out(path: Path, blocks: NDArray[np.int64]) -> None:
    """Give the space of these blocks (sorted) back; they read as zeros then."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for part in np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1):
            start, size = ctypes.c_int64(int(part[0]) * BLOCK_BYTES), ctypes.c_int64(len(part) * BLOCK_BYTES)
            if _libc.fallocate(fd, KEEP_SIZE | PUNCH_HOLE, start, size):
                number = ctypes.get_errno()
                raise EnvironmentProblem(
                    "the disk of the cache cannot give space back",
                    where=str(path.parent),
                    why=os.strerror(number),
                    fix="set XDG_CACHE_HOME to a folder on a local disk (ext4, xfs, btrfs, tmpfs)",
                )
    finally:
        os.close(fd)


def _after_fork() -> None:
    for cache in _caches:
        cache.after_fork()


os.register_at_fork(after_in_child=_after_fork)
