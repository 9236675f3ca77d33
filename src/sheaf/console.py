"""How long work tells what it does: stages with progress, and notes. Data never goes here; it goes to stdout.

On a terminal a stage is a bar; elsewhere it is a line when it starts, one when it ends, and one at most every ten
seconds between. Text of documents, file names and error texts of others are hostile: `printable` makes every control
character visible before it reaches a terminal, and nothing is ever read as markup. Cost: rich is imported only when a
bar or a note is first drawn on a terminal, and an advance of a plain stage is one clock reading.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

AGAIN_SECONDS = 60.0  # before the same note of many workers is shown again
LINE_SECONDS = 10.0  # off a terminal: progress lines come at most this often

_listeners: list[Callable[[str], None]] = []
_told: dict[str, float] = {}
_listeners_lock = threading.Lock()


class Console(Protocol):
    """Where progress and messages go (stderr, or nowhere)."""

    def stage(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A stage of work with a bar. The value is a function that advances it. unit: "B", "items", "steps", …"""
        ...

    def note(self, text: str) -> None:
        """One line worth keeping."""
        ...


def tell(text: str) -> None:
    """A note from deep inside, or from a worker, to whoever listens (`telling`); to nobody if nobody does."""
    with _listeners_lock:
        if not _listeners or time.monotonic() - _told.get(text, -AGAIN_SECONDS) < AGAIN_SECONDS:
            return
        _told[text] = time.monotonic()
        listener = _listeners[-1]
    listener(text)


@contextmanager
def telling(listener: Callable[[str], None]) -> Generator[None]:
    """Inside the block the listener gets what is told in this process, the same text at most once a minute."""
    with _listeners_lock:
        _listeners.append(listener)
        _told.clear()
    try:
        yield
    finally:
        with _listeners_lock:
            _listeners.remove(listener)


class Silent:
    """For library use and tests."""

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Callable[[int], None]]:
        yield lambda _: None

    def note(self, text: str) -> None:
        pass


class TerminalConsole:
    """Bars on a terminal, plain lines elsewhere; on stderr. Stages may nest and may be advanced from any thread."""

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._lock = threading.RLock()
        self._progress: Progress | None = None
        self._open_stages = 0
        self.bars = is_terminal(self._stream)

    @contextmanager
    def stage(self, title: str, total: int | None, unit: str) -> Generator[Callable[[int], None]]:
        if not self.bars:
            line = _PlainStage(title, total, unit, self.note, self._clock)
            yield line.advance
            line.end()
            return
        progress, task = self._add_bar(title, total, unit)
        try:
            yield lambda n: progress.advance(task, n)
        finally:
            self._remove_bar(task)

    def note(self, text: str) -> None:
        with self._lock:
            if self._progress is not None:
                from rich.text import Text

                self._progress.console.print(Text(printable(text)), soft_wrap=True)
                return
            # A console that went away (BrokenPipe on stderr) must not end the work itself.
            with suppress(BrokenPipeError):
                self._stream.write(printable(text) + "\n")
                self._stream.flush()

    def _add_bar(self, title: str, total: int | None, unit: str) -> tuple[Progress, TaskID]:
        with self._lock:
            if self._progress is None:
                self._progress = _new_progress(self._stream)
                self._progress.start()
            self._open_stages += 1
            return self._progress, self._progress.add_task(printable(title), total=total, unit=unit)

    def _remove_bar(self, task: TaskID) -> None:
        with self._lock:
            self._open_stages -= 1
            if self._progress is not None:
                self._progress.stop_task(task)
            if self._open_stages == 0 and self._progress is not None:
                self._progress.stop()
                self._progress = None


def is_terminal(stream: TextIO) -> bool:
    """Whether bars and colours may be drawn there."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


# C0 and C1 controls except tab and line feed, DEL, line and paragraph separators, the marks that reverse the order of
# what is shown (Trojan Source, CVE-2021-42574), invisible tag characters, and lone surrogates (undecodable file names).
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with every character that could steer a terminal written as an escape."""
    return _UNPRINTABLE.sub(lambda m: m.group().encode("unicode_escape").decode("ascii"), text)


def quantity(n: float, unit: str) -> str:
    """`1.5 MB`, `12,345 items`."""
    return size(n) if unit == "B" else f"{n:,.0f} {unit}"


def size(n: float) -> str:
    """Bytes in decimal units, three digits: `999 B`, `1.23 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 999.5 or unit == "TB":
            break
        n /= 1000
    return f"{n:.0f} {unit}" if unit == "B" or abs(n) >= 99.95 else f"{n:.3g} {unit}"


def duration(seconds: float) -> str:
    """`0.4 s`, `59 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _PlainStage:
    """Progress as lines: one at the start, one at most every LINE_SECONDS, one at the end (not after an error)."""

    def __init__(
        self, title: str, total: int | None, unit: str, write: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._write, self._clock = write, clock
        self._done = 0
        self._lock = threading.Lock()
        self._start = self._last = clock()
        write(f"{title} …" if total is None else f"{title}: {quantity(total, unit)} …")

    def advance(self, n: int) -> None:
        with self._lock:
            self._done += n
            now = self._clock()
            if now - self._last < LINE_SECONDS:
                return
            self._last = now
            share = f" ({100 * self._done / self._total:.0f}%)" if self._total else ""
            self._write(f"{self._title}: {quantity(self._done, self._unit)}{share}")

    def end(self) -> None:
        seconds = duration(self._clock() - self._start)
        self._write(f"{self._title}: {quantity(self._done, self._unit)} in {seconds}")


def _new_progress(stream: TextIO) -> Progress:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            unit = task.fields["unit"]
            done = quantity(task.completed, unit)
            return Text(done if task.total is None else f"{done} of {quantity(task.total, unit)}")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        Amount(),
        TimeElapsedColumn(),
        console=RichConsole(file=stream, highlight=False),
        refresh_per_second=5,
    )
