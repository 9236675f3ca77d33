"""Notice that ranks no longer get on, and say which of them is the cause and where it stands.

Every step has a collective, so one stuck rank soon silences all: the ranks hang when every one that lives has given no
sign for longer than the most patient of their phases allows (see `pulse.Patience`). A rank that is stopped by a signal
is told from its state in /proc, in whatever phase. The cause is the rank that the system holds (stopped, or waiting for
a device); else those that do not wait for their peers, and of these the furthest behind; else all, which wait for each
other. Time counts only while this process looks: a machine that slept, or was halted, is no hang.
Cost: a few system calls a rank, once a quarter of a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sheaf.parallel.pulse import DUMP, WORDS, Board, Patience, Phase, Sign

LOOK_SECONDS = 0.25
LONGEST_LOOK = 2.0  # a longer gap between two looks was our own sleep, not theirs
ANSWER_SECONDS = 2.0  # to write a stack takes a rank a millisecond, when it can
STATES = {
    "T": "stopped by a signal (state T, as SIGSTOP does)",
    "t": "held by a debugger (state t)",
    "D": "waiting for a device or a file system (state D)",
}
FRAMES_SHOWN = 12


@dataclass(frozen=True)
class Stuck:
    """A rank that hangs. state: what the system says of its process, "" if nothing special. stack: of its training
    thread, innermost first; "" if it could not answer. all_stacks: of all its threads."""

    rank: int
    phase: Phase
    step: int
    seconds: float
    waiting: bool
    state: str
    stack: str
    all_stacks: str

    def __str__(self) -> str:
        where = WORDS[self.phase] + (f" after {self.step:,} steps" if self.step >= 0 else "")
        what = "waits for its peers" if self.waiting else "is stuck"
        held = f", {self.state}" if self.state else ""
        return f"rank {self.rank} {what} {where}: no progress for {self.seconds:.0f} s{held}"

    def lines(self) -> list[str]:
        """What to show of it, its stack included."""
        if not self.stack:
            return [str(self), f"  it has no stack to show: it did not answer in {ANSWER_SECONDS:.0f} s"]
        frames = self.stack.splitlines()
        more = [f"  … {len(frames) - FRAMES_SHOWN} more"] if len(frames) > FRAMES_SHOWN else []
        return [str(self), *frames[:FRAMES_SHOWN], *more]


class Watch:
    """Looks at the ranks of one start. `reached`: the most steps that any has done; `began`: what it started from."""

    def __init__(self, board: Board, patience: Patience) -> None:
        self._board, self._patience = board, patience
        self._signs: dict[int, Sign] = {}
        self._silent: dict[int, float] = {}
        self._stopped: dict[int, float] = {}
        self._looked = time.monotonic()
        self.began, self.reached = -1, -1

    def look(self, living: Mapping[int, int]) -> list[Stuck]:
        """The ranks that hang now, or none. living: rank → pid of those that have not ended."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return []
        passed, self._looked = min(now - self._looked, LONGEST_LOOK), now
        for rank, pid in living.items():
            self._read(rank, passed)
            stopped = process_state(pid) == "T"
            self._stopped[rank] = self._stopped.get(rank, 0.0) + passed if stopped else 0.0
        return self._hanging(living)

    def _read(self, rank: int, passed: float) -> None:
        before, sign = self._signs.get(rank, Sign()), self._board.sign(rank)
        self._signs[rank] = sign
        if sign.number == before.number:
            self._silent[rank] = self._silent.get(rank, 0.0) + passed
            return
        self._silent[rank] = 0.0
        self.began = max(self.began, sign.began)
        if sign.step > before.step >= 0:
            self._patience.seconds.append(sign.seconds)
        self.reached = max(self.reached, sign.step)

    def _hanging(self, living: Mapping[int, int]) -> list[Stuck]:
        stopped = [rank for rank in living if self._stopped[rank] >= self._patience.least]
        if not stopped and not self._all_silent(living):
            return []
        states = {rank: STATES.get(process_state(pid), "") for rank, pid in living.items()}
        stacks = self._stacks(living)
        return [
            Stuck(
                rank=rank,
                phase=self._signs[rank].phase,
                step=self._signs[rank].step,
                seconds=max(self._silent[rank], self._stopped[rank]),
                waiting=self._signs[rank].waiting,
                state=states[rank],
                stack=_main_thread(stacks[rank]),
                all_stacks=stacks[rank],
            )
            for rank in stopped or self._causes(states)
        ]

    def _all_silent(self, living: Mapping[int, int]) -> bool:
        if not living:
            return False
        limit = max(self._patience.limit(self._signs[rank].phase) for rank in living)
        return all(self._silent[rank] >= limit for rank in living)

    def _causes(self, states: Mapping[int, str]) -> list[int]:
        if held := [rank for rank, state in states.items() if state]:
            return held
        busy = [rank for rank in states if not self._signs[rank].waiting] or list(states)
        furthest_behind = min(self._signs[rank].step for rank in busy)
        return [rank for rank in busy if self._signs[rank].step == furthest_behind]

    def _stacks(self, living: Mapping[int, int]) -> dict[int, str]:
        """Asks every rank for its stacks and waits for the answers; "" where none came."""
        for rank, pid in living.items():
            self._board.forget_stack(rank)
            with contextlib.suppress(ProcessLookupError):
                if handles(pid, DUMP):  # it would die of the signal while it only starts
                    os.kill(pid, DUMP)
        found: dict[int, str] = {}
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.05)
            before, found = found, {rank: self._board.stack(rank) for rank in living}
            if found == before and all(found.values()):  # a stack may be seen half written
                break
        return found


def process_state(pid: int) -> str:
    """The letter that /proc has for a process: R, S, D, T, … ("" if it is gone)."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for the signal."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False


def _main_thread(stacks: str) -> str:
    """Of faulthandler's dump of all threads, the last one: the thread that came first, which trains."""
    return "\n".join(stacks.rpartition("most recent call first):\n")[2].splitlines())
