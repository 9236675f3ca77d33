"""Where things lie in a workspace. Nothing else knows these names.

A workspace is a folder, or a prefix in an object store with a folder here that mirrors it (`store.py`). Every file is
read and written in the folder, by the functions of `files.py`; what the folders hold is asked here.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sheaf.console import Console
from sheaf.errors import EnvironmentProblem
from sheaf.files import PRIVATE, disk_errors, is_mirror, is_url, read_done, refreshed, this_machine

if TYPE_CHECKING:
    from sheaf.corpus.store import ObjectStore

_TEMPORARY = re.compile(r"^\..*\.tmp-(?:([0-9a-f]{8})-)?(\d+)$")
FOREIGN_SECONDS = 24 * 3600  # after which what another machine left half-written is nobody's


@dataclass(frozen=True, slots=True)
class Workspace:
    root: Path

    def __post_init__(self) -> None:
        mirrored = _store_of(self.root)  # from now on its files are fetched
        if mirrored is not None:
            object.__setattr__(self, "root", mirrored.root)  # as files.py knows it

    @staticmethod
    def at(where: str | Path) -> Workspace:
        """The workspace of a recipe: a folder or a URL. Raises RecipeError for another kind of URL."""
        if not (isinstance(where, str) and is_url(where)):
            return Workspace(Path(where))
        from sheaf.corpus import store

        return Workspace(store.opened(where))

    @property
    def where(self) -> str:
        """What `at` finds it by, on any machine."""
        mirrored = _store_of(self.root)
        return str(self.root) if mirrored is None else mirrored.url

    def shard(self, digest: str) -> Path:
        return self.root / "shards" / digest

    def scores(self, shard: str, stage: str) -> Path:
        return self.root / "scores" / f"{shard}.{stage}"

    def tokenizer(self, digest: str) -> Path:
        return self.root / "tokenizers" / digest

    def tokens(self, tokenizer: str, shard: str) -> Path:
        return self.root / "tokens" / tokenizer / shard

    def corpus(self, name: str) -> Path:
        return self.root / "corpora" / name

    @property
    def head(self) -> Path:
        """The file that names the newest version. Asked for anew, as another machine may have made one."""
        return refreshed(self.root / "HEAD")

    @property
    def packs(self) -> Path:
        return self.root / "packs"

    @property
    def near(self) -> Path:
        """Candidates for near duplicates, a cache."""
        return self.root / "near"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def spool(self) -> Path:
        """Where fetched items lie while they are read, in files without a name: the temporary folder may be small."""
        return self.root / "spool"

    def create(self) -> None:
        """Make the folder and remove what killed processes of this machine left half-written."""
        try:
            with disk_errors(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                for folder in ("shards", "scores", "tokenizers", "tokens", "corpora", "packs"):
                    (self.root / folder).mkdir(exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise EnvironmentProblem(
                "the workspace cannot be made",
                where=str(self.root),
                why=error.strerror or str(error),
                fix="set `workspace:` to a folder, or to the name of one that can be made",
            ) from error
        self.tidy()

    def tidy(self) -> None:
        """Remove what killed processes of this machine left half-written."""
        for folder in (self.root, *self.root.glob("*"), *self.root.glob("tokens/*")):
            if folder.is_dir():
                _remove_leftovers(folder)

    def finished_shards(self) -> list[str]:
        """Names of all complete shards, sorted."""
        return self.finished("shards")

    def versions(self) -> list[str]:
        """Names of all complete versions of the corpus, sorted; `corpus(name)` is the folder."""
        return self.finished("corpora")

    def finished(self, folder: str) -> list[str]:
        """Names of the complete task folders in a folder of the workspace, sorted."""
        return [path.name for path in self.folders(folder) if read_done(path) is not None]

    def folders(self, folder: str) -> list[Path]:
        """The folders in a folder of the workspace, finished or not, sorted by name; in a store, those that it has."""
        place, mirrored = self.root / folder, _store_of(self.root)
        if mirrored is not None and folder not in PRIVATE:
            names = mirrored.names(place)
        else:
            names = [p.name for p in place.iterdir() if p.is_dir()] if place.is_dir() else []
        return [place / name for name in sorted(names) if not name.startswith(".")]

    @contextmanager
    def locked(self, console: Console) -> Generator[None]:
        """Hold the workspace for preparing: two at once would do everything twice. Ends with its process."""
        mirrored = _store_of(self.root)
        if mirrored is None:
            with self._locked_here(console):
                yield
            return
        from sheaf.corpus import lease

        with self._locked_here(console), lease.held(mirrored, self.root / "LEASE", console):
            yield

    @contextmanager
    def _locked_here(self, console: Console) -> Generator[None]:
        with disk_errors(self.root):
            fd = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.note(f"waiting for another process that prepares in {self.root}")
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _store_of(root: Path) -> ObjectStore | None:
    """The store that a workspace's folder mirrors. What speaks with stores takes 0.2 s to load: for those only."""
    if not is_mirror(root):
        return None
    from sheaf.corpus import store

    return store.store_of(root)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and not _in_use(path, match[1], int(match[2])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _in_use(path: Path, machine: str | None, pid: int) -> bool:
    if machine in (None, this_machine()):
        return _alive(pid)
    try:
        return time.time() - path.stat().st_mtime < FOREIGN_SECONDS
    except FileNotFoundError:
        return True  # it has just been renamed


def _alive(pid: int) -> bool:
    """Whether it runs. A process that nobody has waited for is dead, though it can still be signalled."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
