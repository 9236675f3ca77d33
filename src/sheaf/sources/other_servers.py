"""File servers that fsspec knows: SMB (with smbprotocol) and WebHDFS (with requests).

fsspec is asked for no more than listing a folder and reading a file; its caches are off. What a version is made of is
whatever the place tells of a change: a time, an etag or a checksum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import fsspec

from sheaf.errors import EnvironmentProblem
from sheaf.sources.fileserver import Account, Denied, Entry
from sheaf.sources.retry import Unreachable

CHUNK_BYTES = 1 << 20
CHANGES = ("mtime", "modified", "modificationTime", "LastModified", "last_modified", "last_write_time", "etag", "ETag")


class FsspecServer:
    def __init__(self, account: Account, uri: str, files: Any = None) -> None:
        """files: a file system of fsspec, for another than the account's. Raises EnvironmentProblem, Unreachable."""
        settings = {"host": account.host, "port": account.port, "username": account.user, "user": account.user or None}
        settings |= {"password": account.password, **account.options}
        if account.scheme == "smb":
            settings.pop("user")
        given = {name: value for name, value in settings.items() if value}
        try:
            with self._errors():
                self._files = files or fsspec.filesystem(account.scheme, **given, skip_instance_cache=True)
        except ImportError as error:
            raise EnvironmentProblem(
                f"a source of {account.scheme}:// needs a library that is not installed",
                where=uri,
                why=str(error),
                fix="pip install smbprotocol" if account.scheme == "smb" else "pip install requests",
            ) from error

    def entries(self, folder: str) -> list[Entry]:
        with self._errors():
            return [_entry(info) for info in self._files.ls(folder, detail=True, refresh=True)]

    def entry(self, path: str) -> Entry:
        with self._errors():
            return _entry(self._files.info(path))

    def read(self, path: str, start: int) -> Iterator[bytes]:
        with self._errors(), self._files.open(path, "rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def close(self) -> None:
        """fsspec's connections end with their object."""

    @contextlib.contextmanager
    def _errors(self) -> Generator[None, None, None]:
        try:
            yield
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise Denied(error.strerror or str(error)) from error
        except (OSError, EOFError) as error:
            raise Unreachable(str(error) or type(error).__name__, outage=True) from error


def _entry(info: dict[str, Any]) -> Entry:
    kind = {"file": "file", "directory": "folder", "link": "link"}.get(info.get("type", ""), "other")
    if info.get("islink"):
        kind = "link"
    changed = next((str(info[name]) for name in CHANGES if info.get(name)), "")
    name = str(info["name"]).rstrip("/").rpartition("/")[2]
    return Entry(name, kind, int(info.get("size") or 0) if kind == "file" else 0, changed)
