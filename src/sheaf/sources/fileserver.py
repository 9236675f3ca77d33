"""Folder trees on file servers: SFTP, FTP and FTPS, and SMB and WebHDFS by fsspec.

Listing walks the folders one request each, in the order of the paths; names are data, links are refused by name. The
version is size and modification time, to the second on most servers: a change within one second that keeps the size is
not seen. An item is fetched whole into an unlinked temporary file when it is opened; after a break the fetch goes on
where it stopped, and at its end the server must still tell the version that was listed.

Cost: a round trip a folder when listing, a connection a source, two round trips and the bytes an item; on the disk the
items that are open.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

from sheaf.errors import DataRefused, RecipeError, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.recipe_file import resolve_secret
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal
from sheaf.sources.folder import escape, real_path
from sheaf.sources.globs import Selection
from sheaf.sources.retry import Line, Pace, Unreachable, enough
from sheaf.sources.spool import spooled

MAX_DEPTH = 128  # folders in folders: a server can make them up without end
MAX_BYTES = 64 << 30
SERVERS = {
    "sftp": "sheaf.sources.sftp:SftpServer",
    "ftp": "sheaf.sources.ftp:FtpServer",
    "ftps": "sheaf.sources.ftp:FtpServer",
    "smb": "sheaf.sources.other_servers:FsspecServer",
    "webhdfs": "sheaf.sources.other_servers:FsspecServer",
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a folder. name: bytes that are not UTF-8 as surrogates. kind: file, folder, link or other.
    version: "" if the server tells no time."""

    name: str
    kind: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Account:
    """Where to connect and as whom. options: the recipe's, secrets looked up."""

    scheme: str
    host: str
    port: int | None
    user: str
    password: str
    options: dict[str, str]


class Denied(Exception):
    """The server's answer for one path is final: it is not there, or may not be read."""


class Server(Protocol):
    """A connection. Every method raises Unreachable for what may go well later, and Denied."""

    def entries(self, folder: str) -> list[Entry]: ...

    def entry(self, path: str) -> Entry: ...

    def read(self, path: str, start: int) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class FileServerSource:
    """Items are files under the URI's path; path is relative to it."""

    def __init__(self, spec: SourceSpec, spool: Path | None = None, line: Line | None = None) -> None:
        self.name = spec.name
        self._spec, self._spool = spec, spool
        self._line = line or Line(what=f"the server of source '{spec.name}'")
        parts = urlsplit(spec.uri)
        if not parts.hostname:
            raise RecipeError(f"a {parts.scheme}:// uri names a host", where=f"source '{spec.name}', uri: {spec.uri}")
        self._parts = parts
        self._root = "/" + unquote(parts.path, errors="surrogateescape").strip("/")
        self._select = Selection.of(spec.include, spec.exclude)
        self._server: Server | None = None

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every file that include and exclude select, sorted by path.

        Raises DataRefused if the folder is not there, EnvironmentProblem if the server does not let us in, TryAgain.
        """
        try:
            yield from self._walk()
        except Unreachable as error:
            fix = "check the uri and the network, then run again; what was done is kept"
            raise TryAgain(
                f"the server of source '{self.name}' does not answer", where=self._uri(""), why=str(error), fix=fix
            ) from error
        finally:
            self._drop()

    def open_item(self, item: Item) -> BinaryIO:
        """The file's bytes. Raises ItemChanged, ItemUnavailable, ItemRefused (gone or not readable any more)."""
        path = self._at(real_path(item.path))
        with spooled(self._spool) as spool:
            try:
                self._line.run(lambda: self._fetch(item, path, spool), known=True)
            except Unreachable as error:
                raise ItemUnavailable(f"{item.uri}: {error}") from error
            except Denied as error:
                raise ItemRefused("unreadable", str(error)) from error
        return spool

    def _walk(self) -> Iterator[Item | Refusal]:
        try:
            top = self._ask(lambda server: server.entries(self._root))
        except Denied as error:
            raise DataRefused(
                f"the folder of source '{self.name}' cannot be listed",
                where=self._uri(""),
                why=str(error),
                fix="correct the path in the uri; a source is a folder",
            ) from error
        stack = [self._sorted("", top)]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif found[1].kind != "folder":
                if self._select.wants(found[0]):
                    yield self._judge(*found)
            elif not self._select.prunes(found[0]):
                refusal = self._descend(found[0], stack)
                if refusal is not None:
                    yield refusal

    def _descend(self, path: str, stack: list[Iterator[tuple[str, Entry]]]) -> Refusal | None:
        if len(stack) >= MAX_DEPTH:
            return self._refuse(path, 0, "link-loop", f"more than {MAX_DEPTH} folders inside each other")
        try:
            stack.append(self._sorted(path + "/", self._ask(lambda server: server.entries(self._at(path)))))
        except Denied as error:
            return self._refuse(path, 0, "unreadable", str(error))
        return None

    def _sorted(self, prefix: str, entries: list[Entry]) -> Iterator[tuple[str, Entry]]:
        # A name with a slash, or none, would be another path than the server's listing says: it is no name.
        good = [(prefix + e.name, e) for e in entries if e.name not in ("", ".", "..") and "/" not in e.name]
        return iter(sorted(good, key=lambda f: escape(f[0]) + ("/" if f[1].kind == "folder" else "")))

    def _judge(self, path: str, entry: Entry) -> Item | Refusal:
        if entry.kind == "link":
            return self._refuse(path, entry.size, "link-remote", "a symbolic link on the server")
        if entry.kind == "other":
            return self._refuse(path, entry.size, "not-a-file", "neither a file nor a folder")
        if entry.size > MAX_BYTES:
            return self._refuse(path, entry.size, "too-large", f"{entry.size:,} bytes of {MAX_BYTES:,}")
        return Item(self.name, escape(path), self._uri(path), _version(entry), entry.size)

    def _refuse(self, path: str, size: int, reason: str, detail: str) -> Refusal:
        return Refusal(self.name, escape(path), self._uri(path), size, reason, detail)

    def _fetch(self, item: Item, path: str, spool: BinaryIO) -> None:
        """One try; goes on behind what the spool holds."""
        start = spool.seek(0, 2)
        pace, got = Pace(), start
        try:
            with_server = self._connected()
            for chunk in with_server.read(path, start):
                spool.write(chunk)
                got += len(chunk)
                pace.check(got - start)
                if got > item.size >= 0:
                    raise ItemChanged(f"{item.uri} is longer than it was listed")
            now = with_server.entry(path)
        except Unreachable as error:
            self._drop()
            error.progress = error.progress or (got > start and enough(got - start, item.size))
            raise
        except ItemChanged:
            self._drop()  # what the server still sends belongs to no later question
            raise
        if item.version != _version(now):
            raise ItemChanged(f"{item.uri} changed after it was listed")
        if got != now.size:
            spool.truncate(0)
            raise Unreachable(f"the server sent {got:,} of {now.size:,} bytes")

    def _ask(self, question: Callable[[Server], T]) -> T:
        def once() -> T:
            try:
                return question(self._connected())
            except Unreachable:
                self._drop()
                raise

        return self._line.run(once)

    def _connected(self) -> Server:
        if self._server is None:
            module, _, kind = SERVERS[self._parts.scheme].partition(":")
            self._server = getattr(importlib.import_module(module), kind)(self._account(), self._uri(""))
        assert self._server is not None
        return self._server

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _account(self) -> Account:
        parts, spec = self._parts, self._spec
        options = {k: v if isinstance(v, str) else resolve_secret(v) for k, v in spec.options.items()}
        password = "" if spec.password is None else resolve_secret(spec.password)
        return Account(parts.scheme, parts.hostname or "", parts.port, unquote(parts.username or ""), password, options)

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    def _uri(self, path: str) -> str:
        """Without a password, should the uri have held one."""
        user = f"{self._parts.username}@" if self._parts.username else ""
        port = f":{self._parts.port}" if self._parts.port else ""
        host = self._parts.hostname or ""
        place = quote(self._at(path) if path else self._root, errors="surrogateescape")
        return f"{self._parts.scheme}://{user}{f'[{host}]' if ':' in host else host}{port}{place}"


def take_options(account: Account, known: tuple[str, ...], uri: str) -> dict[str, str]:
    """The options, if all are known. Raises RecipeError."""
    for name in account.options:
        if name not in known:
            fix = f"options of {account.scheme}: {', '.join(known) or 'none'}"
            raise RecipeError(f"unknown option '{name}' of a {account.scheme} source", where=uri, fix=fix)
    return account.options


def _version(entry: Entry) -> str:
    return f"{entry.size}-{entry.version}"
