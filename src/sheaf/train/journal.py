"""What happened, one JSON line a step: `journal.jsonl`, and one a measurement on held-out text: `evaluations.jsonl`.

A line goes to the kernel in one write as soon as the step is done, so a killed process loses none; `sync` makes all
lines durable before a checkpoint says how long the file is. A resumed run cuts the file back to its checkpoint's
length and writes the later steps again: every step stands there exactly once. Evaluations have a file of their own so
that a reader of steps needs no cases. Cost: some 20 microseconds a step.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from sheaf.errors import CorruptStore
from sheaf.files import disk_errors

STEPS = "journal.jsonl"
EVALUATIONS = "evaluations.jsonl"
TAIL_BYTES = 8192  # more than most lines


class Journal:
    """A file of JSON lines, open for appending. length: bytes to keep of what is there."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        with disk_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if os.fstat(self._fd).st_size < length:
            os.close(self._fd)
            raise CorruptStore(
                "the run's journal is shorter than its checkpoint says",
                where=str(path),
                why=f"{length} bytes were there when the checkpoint was written",
                fix="restore the file, or start a new run",
            )
        os.ftruncate(self._fd, length)
        self._length = length

    def append(self, line: dict[str, Any]) -> None:
        data = orjson.dumps(line) + b"\n"
        with disk_errors(self.path):
            while data:
                written = os.write(self._fd, data)
                self._length += written
                data = data[written:]

    def sync(self) -> int:
        """Make all lines durable. Returns the file's length in bytes."""
        with disk_errors(self.path):
            os.fsync(self._fd)
        return self._length

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)


def read(run: Path) -> list[dict[str, Any]]:
    """The steps of a run so far, also while it runs: a line that is only half there is left out."""
    return read_lines(run / STEPS)


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / EVALUATIONS)


def steps_done(run: Path) -> int:
    """Steps that the journal has, from its end alone."""
    path = run / STEPS
    if not path.exists():
        return 0
    size, tail = path.stat().st_size, TAIL_BYTES
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - tail))
            lines = file.read().split(b"\n")[:-1]  # behind the last newline stands a line that is being written
            if len(lines) > 1 or tail >= size:
                return int(orjson.loads(lines[-1])["step"]) + 1 if lines else 0
            tail *= 2  # a line of hundreds of sources


def read_step(run: Path, step: int) -> dict[str, Any] | None:
    """The line of one step, found by halving the file: of ten million steps any one costs some thirty short reads."""
    path = run / STEPS
    if not path.exists():
        return None
    with path.open("rb") as file:
        low, high = 0, path.stat().st_size  # the line begins in [low, high), if it is there
        while low < high:
            middle = (low + high) // 2
            begin, data = _first_line_from(file, middle)
            line = orjson.loads(data) if data.endswith(b"\n") else None
            if line is not None and line["step"] == step:
                return line
            if line is None or line["step"] > step:
                high = middle
            else:
                low = begin + len(data)
    return None


def _first_line_from(file: BinaryIO, at: int) -> tuple[int, bytes]:
    """Where the first line that begins at `at` or later does so, and the line; without a newline if it is not whole."""
    file.seek(max(0, at - 1))
    if at:
        file.readline()  # the rest of the line before
    return file.tell(), file.readline()


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    return [orjson.loads(line) for line in whole.splitlines()]
