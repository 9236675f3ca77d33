"""A run's folder: what it was started with, and what came of it.

    runs/<name>-001/  recipe.yaml        the recipe as resolved, for people
                      run.json           the recipe again, corpus, settings, ranks, versions; at the end the result
                      journal.jsonl, evaluations.jsonl, restarts.jsonl, notes.txt, checkpoints/
                      .lock              held (flock) by the process that trains: two can't write one run

The number is claimed by creating the folder, which is atomic; the lock goes with its process, however that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from sheaf.corpus.version import CorpusVersion
from sheaf.errors import CorruptStore, UsageError
from sheaf.files import disk_errors, write_json
from sheaf.recipe import Layout, Recipe
from sheaf.runs import read_record
from sheaf.train.settings import Settings

FORMAT = 2


@dataclass(frozen=True)
class Run:
    """A run that was started. `record` is run.json."""

    folder: Path
    record: dict[str, Any]

    @staticmethod
    def open(folder: Path) -> Run:
        """Raises UsageError if this is no run, or one that was killed before it began; CorruptStore if it is broken."""
        path = folder / "run.json"
        if not path.exists():
            raise UsageError(
                "this is not a run that could go on",
                where=str(folder),
                why="it has no run.json" if folder.exists() else "the folder does not exist",
                fix="name a folder under workspace/runs, or start anew with `sheaf train`",
            )
        record = read_record(folder)
        if record["format"] != FORMAT:
            raise CorruptStore("the run was written by another version of Sheaf", where=str(path))
        return Run(folder.resolve(), record)

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate_json(orjson.dumps(self.record["recipe"]))

    @property
    def settings(self) -> Settings:
        return Settings(**self.record["settings"])

    @property
    def ranks(self) -> int:
        return int(self.record["ranks"])

    @property
    def layout(self) -> Layout | None:
        """How its ranks spread the model, since it was last started or resumed; None until they have chosen."""
        return self.record["layout"] and Layout.model_validate(self.record["layout"])

    @property
    def result(self) -> dict[str, Any] | None:
        return self.record["result"]

    @property
    def until(self) -> int | None:
        """The step after which to stop with a checkpoint, short of the end; None: train to the end."""
        return self.record.get("until")

    @property
    def avoided(self) -> list[int]:
        """Steps whose updates are left out (`train.spikes: rollback`)."""
        return self.record["avoided"]

    def wrote(self, manifest: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of the run as it is now: without the updates that it leaves out."""
        step = manifest["step"]
        left_out = [{n for n in steps if n < step} for steps in (self.avoided, manifest["spikes"]["avoided"])]
        return left_out[0] == left_out[1]

    def corpus(self) -> CorpusVersion:
        """The version of the corpus that the run was started on."""
        return CorpusVersion.open(self.folder.parent.parent, self.record["corpus"])

    def updated(self, **changes: Any) -> Run:
        """Write run.json with these fields changed."""
        record = {**self.record, **changes}
        write_json(self.folder / "run.json", record)
        return Run(self.folder, record)


def start_run(
    folder: Path,
    recipe: Recipe,
    corpus: CorpusVersion,
    settings: Settings,
    ranks: int,
    layout: Layout | None,
    order: dict[str, Any],
) -> Run:
    """Write run.json. layout: None if the ranks are to choose it. order: the state of the order at step 0."""
    record = {
        "format": FORMAT,
        "name": folder.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "recipe": _recorded(recipe),
        "corpus": corpus.digest,
        "fingerprint": corpus.fingerprint,
        "order": order,
        "settings": settings.to_json(),
        "ranks": ranks,
        "layout": layout and layout.model_dump(),
        "until": None,
        "avoided": [],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "result": None,
    }
    return Run(folder.resolve(), {}).updated(**record)


def _recorded(recipe: Recipe) -> dict[str, Any]:
    """A recipe that leaves the degree of data parallel to the number of ranks still does when it is read again."""
    record = orjson.loads(recipe.model_dump_json(by_alias=True))
    layout = recipe.train.layout
    if layout != "auto" and "data" not in layout.model_fields_set:
        del record["train"]["layout"]["data"]
    return record


def claim_folder(runs: Path, name: str) -> Path:
    """Create and return the first free runs/<name>-NNN."""
    with disk_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
        taken = [path.name.removeprefix(f"{name}-") for path in runs.glob(f"{name}-*")]
        number = max((int(part) for part in taken if part.isdecimal()), default=0)
        while True:
            number += 1
            folder = runs / f"{name}-{number:03d}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder


@contextlib.contextmanager
def locked(folder: Path, what: str = "is training this run") -> Generator[None]:
    """Hold the run, or what else a folder holds. Raises UsageError if another process does so now: what it does."""
    with disk_errors(folder):
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process {what}", where=str(folder), fix="wait for it, or stop it first"
            ) from error
        yield
    finally:
        os.close(fd)
