"""A folder tree, or one file, on this machine.

Listing walks with os.scandir, one folder's entries in memory at a time, in the order of the paths (a folder sorts as
"name/"). Symbolic links are followed if they end inside the root; what is neither a file nor a folder is refused by
name. Opening walks again from the root, refusing links, so that nothing swapped in after listing is read.
Cost: 10 µs of processor time to list an item, 30 µs to open one.

Names need not be UTF-8. In `path` and `uri`, a byte that is not becomes %HH, and a % that would look like one, or like
the escape of a %, becomes %25; so paths stay unique and `real_path` finds the file.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from sheaf.errors import DataRefused, RecipeError
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemUnavailable, Refusal
from sheaf.sources.globs import Selection

BYTE = re.compile("[\udc80-\udcff]|%(?=25|[89A-Fa-f][0-9A-Fa-f])")
Entry = tuple[str, os.DirEntry[str], bool]  # relative path, entry, whether it is a folder or leads to one
ESCAPED = re.compile("%(25|[89A-F][0-9A-F])")


class FolderSource:
    """Items are files; path is relative to the root, version is "size-mtime_ns". `.git` folders are passed over."""

    def __init__(self, spec: SourceSpec, spool: Path | None = None) -> None:
        self.name = spec.name
        self._spec = spec
        self._top = Path(os.path.normpath(Path(_local(spec)).absolute()))
        self._select = Selection.of(spec.include, spec.exclude)

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every file that include and exclude select, sorted by path, and a Refusal for what cannot be read."""
        try:
            top = self._top.stat()
        except OSError as error:
            raise self._missing(error) from None
        if not stat.S_ISDIR(top.st_mode):
            yield self._judge(self._top.name, str(self._top), top)
            return
        root = self._root
        try:
            first = self._entries("", str(self._top))
        except OSError as error:
            raise self._missing(error) from None
        # An explicit stack: a tree may be deeper than Python's recursion limit.
        stack = [first]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                continue
            yield from self._visit(entry, root, stack)

    def open_item(self, item: Item) -> BinaryIO:
        """The file, if it still is the one that was listed. Raises ItemChanged, ItemUnavailable."""
        try:
            fd = self._open(real_path(item.path))
        except FileNotFoundError as error:
            raise ItemChanged(f"{item.uri} is gone") from error
        except OSError as error:
            raise ItemUnavailable(f"{item.uri}: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or _version(status) != item.version:
            os.close(fd)
            raise ItemChanged(f"{item.uri} changed after it was listed")
        return os.fdopen(fd, "rb")

    @functools.cached_property
    def _is_file(self) -> bool:
        """Whether the source is one file. Asked once: an answer for each item took as long as opening it."""
        return not self._top.is_dir()

    @functools.cached_property
    def _root(self) -> str:
        """The root without links."""
        return os.path.realpath(self._top)

    def _open(self, relative: str) -> int:
        if self._is_file:
            return os.open(self._top, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        root, parts = self._root, relative.split("/")
        if not {"", ".", ".."}.intersection(parts):
            try:
                return _open_below(root, parts)
            except OSError as error:  # most likely a link on the way
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
        inside = _inside(os.path.realpath(f"{root}/{relative}"), root)
        if inside is None:
            raise OSError(errno.ELOOP, "it now lies outside the source's folder")
        return _open_below(root, inside.split("/"))

    def _entries(self, prefix: str, folder: str) -> Iterator[Entry]:
        """What lies in a folder, in the order of escaped paths."""
        with os.scandir(folder) as scan:
            found = [(prefix + e.name, e, _leads_to_folder(e)) for e in scan]
        return iter(sorted(found, key=lambda f: escape(f[0]) + ("/" if f[2] else "")))

    def _visit(self, entry: Entry, root: str, stack: list[Iterator[Entry]]) -> Iterator[Item | Refusal]:
        path, file, folder = entry
        if folder and (file.name == ".git" or self._select.prunes(path)):
            return
        if not folder and not self._select.wants(path):
            return
        try:
            if file.is_symlink():
                target = os.path.realpath(file.path, strict=True)
                if refused := _link_refusal(entry, target, root):
                    yield self._refuse(path, file.path, *refused)
                    return
            if folder:
                stack.append(self._entries(path + "/", file.path))
                return
            yield self._judge(path, file.path, file.stat())
        except OSError as error:
            yield self._refuse_error(path, file, root, error)

    def _judge(self, path: str, place: str, status: os.stat_result) -> Item | Refusal:
        if not stat.S_ISREG(status.st_mode):
            return self._refuse(path, place, "not-a-file", _kind(status.st_mode))
        if not os.access(place, os.R_OK, effective_ids=True):
            return self._refuse(path, place, "unreadable", "permission denied", status.st_size)
        return Item(self.name, escape(path), escape(place), _version(status), status.st_size)

    def _refuse_error(self, path: str, file: os.DirEntry[str], root: str, error: OSError) -> Refusal:
        if file.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR):
            if _inside(os.path.realpath(file.path), root) is None:
                return self._refuse(
                    path, file.path, "link-outside", "the link leads out of the source's folder, to nothing"
                )
            return self._refuse(path, file.path, "unreadable", "the link leads to nothing")
        return self._refuse(path, file.path, "unreadable", error.strerror or str(error))

    def _refuse(self, path: str, place: str, reason: str, detail: str, size: int = 0) -> Refusal:
        return Refusal(self.name, escape(path), escape(place), size, reason, detail)

    def _missing(self, error: OSError) -> DataRefused:
        near: list[str] = []
        with contextlib.suppress(OSError):
            names = [e.name for e in os.scandir(self._top.parent)]
            near = difflib.get_close_matches(self._top.name, names, n=3, cutoff=0.5) or sorted(names)[:5]
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        return DataRefused(
            f"the folder of source '{self.name}' {'does not exist' if absent else 'cannot be read'}",
            where=escape(str(self._top)),
            why=error.strerror or str(error),
            fix=f"in {escape(str(self._top.parent))} there are: {escape(', '.join(near))}"
            if near
            else "check the path",
        )


def escape(name: str) -> str:
    """A name from the file system as text that UTF-8 can encode; different names give different texts."""
    return BYTE.sub(lambda m: "%25" if m[0] == "%" else f"%{ord(m[0]) - 0xDC00:02X}", name)


def real_path(text: str) -> str:
    """The name that `escape` was given; for `open` (surrogates stand for bytes that are not UTF-8)."""
    return ESCAPED.sub(lambda m: "%" if m[1] == "25" else chr(0xDC00 + int(m[1], 16)), text)


def _local(spec: SourceSpec) -> str:
    if not spec.uri.lower().startswith("file://"):
        return spec.uri
    parts = urlsplit(spec.uri)
    if parts.netloc not in ("", "localhost"):
        raise RecipeError(
            "a file:// URI cannot name another host",
            where=f"source '{spec.name}', uri: {spec.uri}",
            fix="write file:///absolute/path, or a path relative to the recipe",
        )
    return unquote(parts.path, errors="surrogateescape")


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, or a folder we may not look into
        return False


def _inside(real: str, root: str) -> str | None:
    """The path of `real` below `root`, or None if it is elsewhere."""
    prefix = root.rstrip("/") + "/"
    return real[len(prefix) :] if real.startswith(prefix) else None


def _link_refusal(entry: Entry, target: str, root: str) -> tuple[str, str] | None:
    """(reason, detail) if a link may not be followed. target: where it ends; root: both without links."""
    path, link, folder = entry
    if target != root and _inside(target, root) is None:
        return "link-outside", "the link leads out of the source's folder"
    if not folder:
        return None
    above = os.path.realpath(link.path.rpartition("/")[0])
    if above == target or _inside(above, target) is not None:
        return "link-loop", "the link leads to a folder that it lies in"
    # A second link on the way could multiply the tree without end; one at most doubles it for each link.
    if (_inside(above, root) or "") != path.rpartition("/")[0]:
        return "link-nested", "the link lies behind another link"
    return None


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
    return next((name for test, name in kinds if test(mode)), "a device")


def _open_below(root: str, parts: list[str]) -> int:
    """Open a file by walking down from the root, following no link on the way."""
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        # O_NONBLOCK: a FIFO put in the file's place must not hold us.
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
