"""Where things lie in a workspace. Nothing else knows these names."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sheaf.console import Console
from sheaf.errors import EnvironmentProblem
from sheaf.files import disk_errors, read_done

_TEMPORARY = re.compile(r"^\..*\.tmp-(\d+)$")


@dataclass(frozen=True, slots=True)
class Workspace:
    root: Path

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
        return self.root / "HEAD"

    @property
    def packs(self) -> Path:
        return self.root / "packs"

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
        for folder in (self.root, *self.root.glob("*"), *self.root.glob("tokens/*")):
            if folder.is_dir():
                _remove_leftovers(folder)

    def finished_shards(self) -> list[str]:
        """Names of all complete shards, sorted."""
        found = (p for p in (self.root / "shards").iterdir() if not p.name.startswith("."))
        return sorted(p.name for p in found if read_done(p) is not None)

    @contextmanager
    def locked(self, console: Console) -> Generator[None]:
        """Hold the workspace for preparing: two at once would do everything twice. Ends with its process."""
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


def _remove_leftovers(folder: Path) -> None:
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and not _alive(int(match.group(1))):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
