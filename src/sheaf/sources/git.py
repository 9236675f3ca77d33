"""The files of one commit of a local git repository, bare or not, straight from its object database.

`git+file:///path/to/repository`, and `ref` (a branch, tag or commit; default HEAD). Nothing is checked out. An item is
a blob: its path in the tree, and as version the id of the blob, so a new commit costs the files that it changed.
`about` holds the commit that last changed the file on the first-parent line of history: true of every later commit
too, so it moves only with the file. Submodules and symbolic links are refused by name, pointers of Git LFS at opening.

The repository is not trusted: git runs without hooks, filters, text conversion, replaced objects, network, lazy fetch,
and without any configuration but the repository's own, of which no command used here runs anything.
Cost: listing is `ls-tree` and one walk of the history until every path is met (a second for some thousand commits);
opening is one answer of a `cat-file --batch` that stays open.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast
from urllib.parse import unquote

from sheaf.errors import DataRefused, EnvironmentProblem, RecipeError
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemRefused, ItemUnavailable, Refusal
from sheaf.sources.folder import escape
from sheaf.sources.globs import Selection
from sheaf.sources.spool import spooled

SCHEME = "git+file://"
CHUNK_BYTES = 1 << 20
LFS = b"version https://git-lfs.github.com/spec/"
LFS_BYTES = 1024  # a pointer is smaller (git-lfs, docs/spec.md)
SETTINGS = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.commitGraph=true", "log.showSignature=false",
            "log.mailmap=false", "protocol.allow=never", "core.quotePath=false")  # fmt: skip
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",  # known since git 2.45; before it, the empty GIT_ALLOW_PROTOCOL refuses every fetch
    "GIT_ALLOW_PROTOCOL": "",
    "GIT_PAGER": "",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: str
    blob: str
    size: int
    path: bytes


class GitSource:
    """Items are the blobs of a commit's tree that include and exclude select."""

    def __init__(self, spec: SourceSpec, spool: Path | None = None) -> None:
        self.name = spec.name
        self._spec, self._spool = spec, spool
        self._ref = spec.ref or "HEAD"
        self._top = Path(os.path.normpath(unquote(spec.uri.removeprefix(SCHEME), errors="surrogateescape")))
        if not self._top.is_absolute():
            fix = "write git+file:///absolute/path; a repository elsewhere is cloned first"
            raise RecipeError("a git+file:// uri holds an absolute path", where=f"source '{spec.name}', uri", fix=fix)
        self._select = Selection.of(spec.include, spec.exclude)

    def list_items(self) -> Iterator[Item | Refusal]:
        """Every file of the commit, sorted by path. Raises DataRefused if there is no such repository or ref."""
        commit = self._commit()
        entries = [(escape(os.fsdecode(entry.path)), entry) for entry in self._tree(commit)]
        chosen = sorted((path, entry) for path, entry in entries if self._select.wants(path))
        commits = self._last_commits(commit, {entry.path for _, entry in chosen})
        for path, entry in chosen:
            yield self._judge(path, entry, commits.get(entry.path, commit))

    def open_item(self, item: Item) -> BinaryIO:
        """The blob that was listed, whatever the ref names by now. Raises ItemUnavailable, ItemRefused (git-lfs)."""
        with spooled(self._spool) as spool:
            try:
                self._blobs.copy(item.version, spool)
            except (OSError, ValueError) as error:
                self.__dict__.pop("_blobs", None)  # the next item gets a fresh process
                raise ItemUnavailable(f"{item.uri}: {error}") from error
            if spool.tell() < LFS_BYTES:
                spool.seek(0)
                if spool.read(len(LFS)) == LFS:
                    raise ItemRefused("git-lfs", "the file itself is on a Git LFS server")
        return spool

    @functools.cached_property
    def _blobs(self) -> _Blobs:
        return _Blobs(self._command("cat-file", "--batch"), self._environment)

    @functools.cached_property
    def _folder(self) -> Path:
        """The repository's own folder: `.git` of a working tree, or a bare repository."""
        inside = self._top / ".git"
        if inside.is_dir():
            return inside
        with contextlib.suppress(OSError):
            if inside.is_file():  # a linked working tree, or a submodule
                text = inside.read_text(errors="surrogateescape")
                return Path(os.path.normpath(self._top / text.removeprefix("gitdir:").strip()))
        return self._top

    @property
    def _environment(self) -> dict[str, str]:
        # Not os.environ: GIT_DIR, GIT_CONFIG_COUNT and the like would lead elsewhere.
        return {**ENVIRONMENT, "PATH": os.environ.get("PATH", os.defpath)}

    def _command(self, *arguments: str) -> list[str]:
        settings = [part for setting in SETTINGS for part in ("-c", setting)]
        return ["git", *settings, f"--git-dir={self._folder}", "--no-pager", *arguments]

    def _commit(self) -> str:
        if not (self._folder / "objects").is_dir() and not (self._folder / "commondir").is_file():
            raise DataRefused(
                f"the repository of source '{self.name}' does not exist",
                where=escape(str(self._top)),
                why="there is no git repository in this folder",
                fix="correct the uri: the folder that holds .git, or a bare repository",
            )
        # --end-of-options: a ref from the recipe is never an option.
        arguments = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{self._ref}^{{commit}}")
        done = self._run(arguments)
        if done.returncode:
            raise DataRefused(
                f"the repository of source '{self.name}' has no commit '{self._ref}'",
                where=escape(str(self._top)),
                why=_last_line(done.stderr) or "no branch, tag or commit has this name",
                fix=f"set `ref:`; there are: {', '.join(self._refs()) or 'none: the repository is empty'}",
            )
        return done.stdout.decode().strip()

    def _refs(self) -> Sequence[str]:
        done = self._run(("for-each-ref", "--count=10", "--format=%(refname:short)"))
        return done.stdout.decode("utf-8", "replace").split()

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        command = self._command(*arguments)
        try:
            return subprocess.run(command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True)
        except OSError as error:
            raise _no_git(error) from error

    def _tree(self, commit: str) -> Iterator[_Entry]:
        for line in self._records("ls-tree", "-r", "-z", "-l", "--full-tree", commit):
            head, _, path = line.partition(b"\t")
            mode, _, blob, size = head.decode().split()
            yield _Entry(mode, blob, int(size) if size.isdigit() else 0, path)

    def _last_commits(self, commit: str, wanted: set[bytes]) -> dict[bytes, str]:
        """path → the newest commit, along first parents, in which the path changed. Stops when all are found."""
        found: dict[bytes, str] = {}
        log = ("log", "--first-parent", "-m", "--root", "--raw", "-z", "--no-renames", "--no-abbrev", "--no-ext-diff",
               "--no-textconv", "--ignore-submodules=all", "--format=%H", commit)  # fmt: skip
        current = commit
        with contextlib.closing(self._records(*log)) as records:
            for record in records:
                if len(found) == len(wanted):
                    break
                if record.lstrip(b"\n").startswith(b":"):  # an entry; its path is the next record
                    path = next(records, b"")
                    if path in wanted:
                        found.setdefault(path, current)
                elif name := record.strip():
                    current = name.decode()
        return found

    def _records(self, *arguments: str) -> Generator[bytes, None, None]:
        """What a command prints, split at NULs. Raises DataRefused if it fails."""
        command = self._command(*arguments)
        try:
            process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise _no_git(error) from error
        with process:
            try:
                yield from _split(cast(IO[bytes], process.stdout))
            except GeneratorExit:
                process.kill()
                raise
            problem = _last_line(cast(IO[bytes], process.stderr).read())
        if process.returncode:
            raise DataRefused("git cannot read the repository", where=escape(str(self._top)), why=problem)

    def _judge(self, path: str, entry: _Entry, commit: str) -> Item | Refusal:
        uri = f"{SCHEME}{escape(str(self._top))}#{path}"
        if entry.mode == "160000":
            return Refusal(self.name, path, uri, 0, "git-submodule", f"commit {entry.blob} of another repository")
        if entry.mode == "120000":
            return Refusal(self.name, path, uri, entry.size, "git-link", "a symbolic link")
        about = json.dumps({"commit": commit})
        return Item(self.name, path, uri, entry.blob, entry.size, about=about)


class _Blobs:
    """A `git cat-file --batch`: asked for blobs one after another, on one process. Ends with its owner."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        try:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise _no_git(error) from error
        self._in, self._out = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        weakref.finalize(self, _end, process)

    def copy(self, blob: str, out: BinaryIO) -> None:
        """Raises ValueError if the object is not there or is no blob, OSError if git has ended."""
        self._in.write(f"{blob}\n".encode())
        self._in.flush()
        head = self._out.readline().decode("ascii", "replace").split()
        if len(head) != 3 or head[0] != blob or head[1] != "blob":
            raise ValueError(f"object {blob} is {' '.join(head[1:]) or 'not to be had'}")
        left = int(head[2])
        while left:
            data = self._out.read(min(left, CHUNK_BYTES))
            if not data:
                raise ValueError(f"object {blob} is damaged: git ended before it did")
            out.write(data)
            left -= len(data)
        self._out.read(1)  # the line break after it


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _split(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while data := stream.read(CHUNK_BYTES):
        *whole, rest = (rest + data).split(b"\0")
        yield from whole
    if rest:
        yield rest


def _last_line(text: bytes) -> str:
    return (text.decode("utf-8", "replace").strip().splitlines() or [""])[-1]


def _no_git(error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem("git cannot be started", why=str(error), fix="install git (apt install git)")
