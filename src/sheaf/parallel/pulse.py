"""Signs of life: what a rank is doing right now, in memory that its launcher sees; and how long that may take.

A rank has a line of shared memory (a memfd that it inherits: no file system, no socket, so a disk that hangs cannot
hold a sign back) and writes there whenever it gets on: a number that grows, the steps that are done, the phase, whether
it waits for its peers, the seconds of the last step. There are two more memfds: one to which faulthandler writes this
process' stacks when the launcher asks by SIGUSR2, and one for its last words, why it failed. `stuck` reads them.

Ranks that torchrun started have nobody who looks at them: each sets an alarm that faulthandler's own thread (C, without
the interpreter's lock) turns into a dump of all stacks on stderr and the end of the process, which torchrun notices.
Cost: about a microsecond a sign; 15 with the alarm.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import statistics
import struct
import sys
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any

import orjson

BOARD = "SHEAF_BOARD"  # variable that `launch` sets: file descriptors of signs, stacks and last words
DUMP = signal.SIGUSR2  # asks for the stacks
LINE = struct.Struct("=QqqIId")
LINE_BYTES = 64  # a cache line each: ranks do not slow each other down
USUAL_STEPS = 64  # the last ones say what is usual
SLOWEST = 10.0  # times the median: no load that passes makes a step so slow, and a hang lasts for ever


class Phase(IntEnum):
    """What a rank is at. The value of STARTING is what memory holds before the first sign."""

    STARTING = 0
    COMPILING = 1
    FIRST_STEP = 2
    STEP = 3
    EVALUATING = 4
    SAVING = 5
    ENDING = 6


WORDS = {
    Phase.STARTING: "while starting",
    Phase.COMPILING: "while compiling",
    Phase.FIRST_STEP: "in its first step",
    Phase.STEP: "in a step",
    Phase.EVALUATING: "while evaluating",
    Phase.SAVING: "while saving",
    Phase.ENDING: "at the end",
}
# Seconds without a sign that are still no hang: corpora are opened and checkpoints read and written at the speed of
# disks, and a compiler takes what it takes. Between two batches of an evaluation, likewise of a first step, no more
# than caches are filled.
ALLOWED = {
    Phase.STARTING: 900.0,
    Phase.COMPILING: 1800.0,
    Phase.FIRST_STEP: 300.0,
    Phase.EVALUATING: 300.0,
    Phase.SAVING: 900.0,
    Phase.ENDING: 900.0,
}


@dataclass(frozen=True)
class Sign:
    """The last one of a rank. number: how many there were. step: steps done, began: when the rank began; -1 before it
    is known."""

    number: int = 0
    began: int = -1
    step: int = -1
    phase: Phase = Phase.STARTING
    waiting: bool = False
    seconds: float = 0.0


@dataclass
class Patience:
    """How long a rank may give no sign. least: seconds that a step always has."""

    least: float
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL_STEPS))

    def limit(self, phase: Phase) -> float:
        usual = SLOWEST * statistics.median(self.seconds) if self.seconds else 0.0
        return max(self.least, usual, ALLOWED.get(phase, 0.0))


class Pulse:
    """This process' own signs: given from the training thread alone, and lost where nobody looks."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._at = 0
        self._last_words = -1
        self._alarm: Patience | None = None
        self._number, self._began, self._step, self._seconds = 0, -1, -1, 0.0
        self._phase, self._waiting = Phase.STARTING, False

    def begin(self, step: int) -> None:
        """Training begins, or goes on, after this many steps."""
        self._began, self._step, self._phase = step, step, Phase.FIRST_STEP
        self.sign()

    def stepped(self, step: int, seconds: float) -> None:
        """A step was made. step: how many there are now."""
        self._step, self._seconds, self._phase = step, seconds, Phase.STEP
        if self._alarm is not None:
            self._alarm.seconds.append(seconds)
        self.sign()

    def start_again(self) -> None:
        """No more steps until `begin`: files are closed, and a model is made anew."""
        self._phase = Phase.STARTING
        self.sign()

    def end(self) -> None:
        """The last step is made. There is nothing to hurry for any more."""
        self._phase = Phase.ENDING
        self.sign()

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Generator[None]:
        """Inside the block this rank is at something else than a step."""
        before, self._phase = self._phase, phase
        self.sign()
        try:
            yield
        finally:
            self._phase = before
            self.sign()

    @contextlib.contextmanager
    def waiting(self) -> Generator[None]:
        """Inside the block this rank can only wait for its peers: whoever is to blame for a hang, it is another one."""
        self._waiting = True
        self._write()
        try:
            yield
        finally:
            self._waiting = False
            self._write()

    def sign(self) -> None:
        """Something was got done."""
        self._number += 1
        self._write()
        if self._alarm is not None:
            faulthandler.dump_traceback_later(self._alarm.limit(self._phase), exit=True, file=sys.stderr)

    def last_words(self, content: dict[str, Any]) -> None:
        """Leave word for the launcher why this rank ends. Not through a disk: that may be the reason."""
        if self._last_words >= 0:
            os.pwrite(self._last_words, orjson.dumps(content), 0)

    def connect(self, rank: int) -> None:
        """Give the signs to the launcher that the environment names."""
        board, stacks, self._last_words = (int(word) for word in os.environ.pop(BOARD).split(","))
        self._memory = mmap.mmap(board, 0)
        self._at = rank * LINE_BYTES
        os.close(board)
        faulthandler.register(DUMP, file=stacks, all_threads=True)

    def set_alarm(self, patience: Patience) -> None:
        """No launcher looks: end this process, with its stacks on stderr, when it gives no sign for too long."""
        self._alarm = patience
        self.sign()

    def stop_alarm(self) -> None:
        if self._alarm is not None:
            faulthandler.cancel_dump_traceback_later()
            self._alarm = None

    def _write(self) -> None:
        if self._memory is not None:
            values = self._number, self._began, self._step, self._phase, self._waiting, self._seconds
            LINE.pack_into(self._memory, self._at, *values)


pulse = Pulse()


@cache
def watch_compiling() -> None:
    """Let the phase say when torch compiles: at the first step, and whenever a new shape comes."""
    from torch._dynamo.callback import CallbackArgs, on_compile_end, on_compile_start

    open_phases: list[contextlib.AbstractContextManager[None]] = []

    def start(_: CallbackArgs) -> None:
        open_phases.append(pulse.phase(Phase.COMPILING))
        open_phases[-1].__enter__()

    def end(_: CallbackArgs) -> None:
        if open_phases:
            open_phases.pop().__exit__(None, None, None)

    on_compile_start(start)
    on_compile_end(end)


class Board:
    """The launcher's side: the memory in which the ranks of one start give their signs. Use as a context manager."""

    def __init__(self, ranks: int) -> None:
        self._signs = os.memfd_create("signs")
        os.ftruncate(self._signs, ranks * LINE_BYTES)
        self._memory = mmap.mmap(self._signs, ranks * LINE_BYTES)
        self._stacks = [os.memfd_create("stacks") for _ in range(ranks)]
        self._last_words = [os.memfd_create("last words") for _ in range(ranks)]

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()
        for fd in (self._signs, *self._stacks, *self._last_words):
            os.close(fd)

    def descriptors(self, rank: int) -> tuple[int, int, int]:
        """To be inherited by this rank."""
        return self._signs, self._stacks[rank], self._last_words[rank]

    def sign(self, rank: int) -> Sign:
        number, began, step, phase, waiting, seconds = LINE.unpack_from(self._memory, rank * LINE_BYTES)
        return Sign(number, began, step, Phase(phase), bool(waiting), seconds) if number else Sign()

    def stack(self, rank: int) -> str:
        """What faulthandler wrote when it was asked last."""
        return _content(self._stacks[rank]).decode(errors="replace")

    def forget_stack(self, rank: int) -> None:
        os.ftruncate(self._stacks[rank], 0)
        os.lseek(self._stacks[rank], 0, os.SEEK_SET)  # the rank shares this position

    def last_words(self, rank: int) -> dict[str, Any] | None:
        data = _content(self._last_words[rank])
        with contextlib.suppress(orjson.JSONDecodeError):  # killed in the middle of a word
            return orjson.loads(data) if data else None
        return None


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
