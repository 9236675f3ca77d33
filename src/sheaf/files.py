"""Files that are there whole or not at all: atomic writes, task folders, digests, the full disk.

Everything the workspace holds is written under a temporary name in the same folder, synced, and renamed; so a crash at
any moment leaves either nothing under the final name or the complete thing. Cost: one fsync a file and one a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import orjson

from sheaf.errors import CorruptStore, EnvironmentProblem


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
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file atomically and durably."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
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
    write_file(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")


@contextlib.contextmanager
def task_folder(final: Path, **done: Any) -> Generator[Path]:
    """A temporary folder that becomes `final` when the block ends well, with DONE naming every file's digest.

    If another process finished the same task first, its folder stays and ours goes: tasks are idempotent.
    """
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            files = sorted(p for p in temporary.rglob("*") if p.is_file())
            for path in files:
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            digests = {str(p.relative_to(temporary)): digest_file(p) for p in files}
            write_json(temporary / "DONE", {**done, "files": digests})
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
        return orjson.loads((folder / "DONE").read_bytes())
    except FileNotFoundError:
        return None


_checked: set[tuple[Path, int, int, int]] = set()


def checked(path: Path) -> Path:
    """The path, after comparing the file's digest with its folder's DONE (once a process). Raises CorruptStore."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        stat = None
    if stat is not None and (path, stat.st_ino, stat.st_size, stat.st_mtime_ns) in _checked:
        return path
    expected = (read_done(path.parent) or {}).get("files", {}).get(path.name)
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
