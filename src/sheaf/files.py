"""Files that are there whole or not at all: atomic writes, task folders, digests, the full disk.

Everything the workspace holds is written under a temporary name in the same folder, synced, and renamed; so a crash at
any moment leaves either nothing under the final name or the complete thing. Cost: one fsync a file and one a folder.

A workspace in an object store has a folder here that mirrors it (`Mirror`, added by corpus/store.py). What is written
there goes to the store before it gets its final name here, DONE last; what is read and not here yet is fetched. So a
file of a task's folder is opened by `checked` or `present`, and one that changes (HEAD) is read after `refreshed`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Generator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import orjson

from sheaf.errors import CorruptStore, EnvironmentProblem

DONE = "DONE"
MARK = ".store"  # in a folder that mirrors an object store: the URL, for whoever opens the folder


class Mirror(Protocol):
    """A folder here that stands for a place elsewhere. Raises TryAgain while that place does not answer."""

    def fetch(self, path: Path) -> bool:
        """Bring a file here, whatever is here now. False if there is none."""
        ...

    def read_range(self, path: Path, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file as it lies there; fewer if it has fewer. Raises FileNotFoundError."""
        ...

    def upload(self, folder: Path, final: Path, names: Sequence[str]) -> None:
        """Put files of a folder where `final` stands for, in this order."""
        ...

    def put(self, path: Path, data: bytes) -> None: ...

    def remove(self, folder: Path) -> None: ...


_mirrors: dict[Path, Mirror] = {}
PRIVATE = frozenset({"near", "runs", "packs", "spool"})  # of a workspace: what stays on the machine that made it


def add_mirror(root: Path, mirror: Mirror) -> None:
    """From now on what lies under the root is also elsewhere, but PRIVATE and names that begin with a dot."""
    _mirrors[root] = mirror


def is_mirror(root: Path) -> bool:
    """Whether a folder mirrors an object store, for this process or by its mark."""
    return root.resolve() in _mirrors or (root / MARK).exists()


def origin_of(path: Path) -> Callable[[int, int], bytes] | None:
    """Reads bytes [start, stop) of a file from where its folder mirrors; None for a folder that mirrors nothing."""
    mirror = _mirror_of(path)
    return None if mirror is None else partial(mirror.read_range, path)


def _mirror_of(path: Path) -> Mirror | None:
    for root, mirror in _mirrors.items():
        if path.is_relative_to(root):
            top = path.relative_to(root).parts[:1]
            return None if not top or top[0] in PRIVATE or top[0].startswith(".") else mirror
    return None


def user_cache(name: str) -> Path:
    """The user's folder for what can be made again at any time. Raises RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sheaf" / name


def is_url(where: str) -> bool:
    return "://" in where


def folder_of(where: str) -> Path:
    """The folder of a workspace: itself, or for a URL the one here that mirrors it.

    Not among the caches: the runs that were trained on it lie there too.
    """
    if not is_url(where):
        return Path(where)
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    words = re.sub(r"[^A-Za-z0-9]+", "-", where.partition("://")[2]).strip("-")[:60]
    return Path(base).resolve() / "sheaf" / "workspaces" / f"{words}-{digest_of(where.rstrip('/'))[:8]}"


def digest_of(*parts: bytes | str | int | float | None) -> str:
    """blake2b-128 of the parts, each preceded by its type and length, as 32 hex characters."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        h.update(b"%s%d:" % (type(part).__name__.encode(), len(data)))
        h.update(data)
    return h.hexdigest()


def digest_json(value: Any) -> str:
    """Digest of a JSON value; key order does not matter."""
    return digest_of(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))


def digest_file(path: Path) -> str:
    """blake2b-128 of a file's bytes, hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn a full or read-only disk into an error that says which, where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentProblem(
                "no space left on the disk",
                where=str(path),
                why=error.strerror or str(error),
                fix="free some space, or set `workspace:` to a larger disk; what was finished is kept",
            ) from error
        if error.errno == errno.EFBIG:
            raise EnvironmentProblem(
                "a file grew beyond what this disk or account allows",
                where=str(path),
                why=error.strerror or str(error),
                fix="raise the limit (ulimit -f), or set `workspace:` to another disk; what was finished is kept",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise EnvironmentProblem(
                "the workspace cannot be written",
                where=str(path),
                why=error.strerror or str(error),
                fix="set `workspace:` to a folder that you may write",
            ) from error
        raise


def sync_folder(path: Path) -> None:
    _sync(path, os.O_DIRECTORY)


def _sync(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_name(path: Path) -> Path:
    """Beside the path, and this process' own: several machines may share the disk, and process numbers repeat."""
    return path.with_name(f".{path.name}.tmp-{this_machine()}-{os.getpid()}")


@cache
def this_machine() -> str:
    """8 hex characters, other ones on every machine, after every boot, and in every container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return digest_of(socket.gethostname(), boot, str(Path("/proc/self/ns/pid").readlink()))[:8]


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file atomically and durably."""
    temporary, mirror = temporary_name(path), _mirror_of(path)
    if mirror is not None:
        mirror.put(path, data)
    with disk_errors(path):
        try:
            with temporary.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_file(path, _json(value))


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


@contextlib.contextmanager
def task_folder(final: Path, **done: Any) -> Generator[Path]:
    """A temporary folder that becomes `final` when the block ends well, with DONE naming every file's digest.

    If another process finished the same task first, its folder stays and ours goes: tasks are idempotent.
    """
    temporary, mirror = temporary_name(final), _mirror_of(final)
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            files = sorted(p for p in temporary.rglob("*") if p.is_file())
            for path in files:
                _sync(path)
            digests = {str(p.relative_to(temporary)): digest_file(p) for p in files}
            (temporary / DONE).write_bytes(_json({**done, "files": digests}))
            _sync(temporary / DONE)
            if mirror is not None:
                mirror.upload(temporary, final, [*digests, DONE])
            try:
                temporary.rename(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync_folder(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_done(folder: Path) -> dict[str, Any] | None:
    """The DONE of a finished task folder, or None if it is not there."""
    try:
        done = orjson.loads(present(folder / DONE).read_bytes())
        if isinstance(done, dict) and isinstance(done.get("files"), dict):
            return done
    except FileNotFoundError:
        return None
    except orjson.JSONDecodeError:
        pass
    raise CorruptStore(
        "a marker of the workspace is damaged",
        where=str(folder / DONE),
        why="it does not say which files the folder has",
        fix=f"delete {folder} and prepare again",
    )


def present(path: Path) -> Path:
    """The path; if it is not here and its folder mirrors another place, it is fetched."""
    if _mirrors and not path.exists() and (mirror := _mirror_of(path)) is not None:
        mirror.fetch(path)
    return path


def refreshed(path: Path) -> Path:
    """The path of a file that may change elsewhere: the newest of it is fetched, if its folder mirrors that place."""
    mirror = _mirror_of(path)
    if mirror is not None and not mirror.fetch(path):
        path.unlink(missing_ok=True)
    return path


def remove_folder(folder: Path) -> None:
    """Remove a task's folder, here and where it is mirrored. What is removed first is DONE."""
    mirror = _mirror_of(folder)
    if mirror is not None:
        mirror.remove(folder)
    (folder / DONE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


_checked: set[tuple[Path, int, int, int]] = set()


def checked(path: Path) -> Path:
    """The path, after comparing the file's digest with its folder's DONE (once a process). Raises CorruptStore."""
    try:
        stat = present(path).stat()
    except FileNotFoundError:
        stat = None
    if stat is not None and (path, stat.st_ino, stat.st_size, stat.st_mtime_ns) in _checked:
        return path
    expected = (read_done(path.parent) or {"files": {}})["files"].get(path.name)
    if stat is None or expected is None:
        raise CorruptStore(
            "a file of the workspace is missing", where=str(path), fix=f"delete {path.parent} and prepare again"
        )
    if digest_file(path) != expected:
        raise CorruptStore(
            "a file of the workspace has changed since it was written",
            where=str(path),
            why="its digest differs from the one in DONE",
            fix=f"delete {path.parent} and prepare again",
        )
    _checked.add((path, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return path
