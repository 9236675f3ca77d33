"""Notes of a run: a console that also keeps them in notes.txt, and a parent that shows what its ranks write.

A note that cannot be written (a full disk) stops nothing: what must not be lost is in the journal and the checkpoints.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType

from sheaf.console import Console, Silent
from sheaf.train.journal import steps_done

NOTES = "notes.txt"
POLL_SECONDS = 0.2
END_SECONDS = 10.0


class NotesFile:
    """A console that writes notes into a run's folder (None: nowhere) and passes everything on to another."""

    def __init__(self, folder: Path | None, inner: Console | None = None) -> None:
        self._path = folder / NOTES if folder is not None else None
        self._inner = inner or Silent()
        self._told = False

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Callable[[int], None]]:
        with self._inner.stage(title, total, unit) as advance:
            yield advance

    def note(self, text: str) -> None:
        if self._path is not None:
            try:
                with self._path.open("a") as file:
                    file.write(text + "\n")
            except OSError as error:
                if not self._told:
                    self._inner.note(f"{self._path} cannot be written: {error.strerror}")
                self._told = True
        self._inner.note(text)


class Follower:
    """Shows on a console what the ranks of a run write: new notes, and steps as progress. A thread that polls files,
    and is left behind at the end if their disk does not answer."""

    def __init__(self, folder: Path, console: Console, steps: int | None) -> None:
        self._folder, self._console, self._steps = folder, console, steps
        self._end = threading.Event()
        self._shown = self._size(NOTES)
        self._done = 0
        self._said: list[str] = []
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join(END_SECONDS)

    def say(self, text: str) -> None:
        """A note of this process' own. It is shown before it is written: the disk may be the trouble."""
        self._console.note(text)
        self._said.append(text)
        NotesFile(self._folder).note(text)

    def _follow(self) -> None:
        with self._console.stage("train", self._steps, "steps") as advance:
            while not self._end.wait(POLL_SECONDS):
                self._show(advance)
            self._show(advance)

    def _show(self, advance: Callable[[int], None]) -> None:
        if (size := self._size(NOTES)) > self._shown:
            with (self._folder / NOTES).open("rb") as file:
                file.seek(self._shown)
                for line in file.read(size - self._shown).decode(errors="replace").splitlines():
                    if line in self._said:
                        self._said.remove(line)
                    else:
                        self._console.note(line)
            self._shown = size
        done = steps_done(self._folder)
        if done > self._done:
            advance(done - self._done)
            self._done = done

    def _size(self, name: str) -> int:
        path = self._folder / name
        return path.stat().st_size if path.exists() else 0
