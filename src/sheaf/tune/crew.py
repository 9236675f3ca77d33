"""Trials' processes: several at a time, each for one trial up to one rung.

They are forks of one process that has imported everything (`parallel/forker.py`), so a trial of seconds is not spent on
imports, and all end with this one, SIGKILL included. A signal to this process, or the end of its time, asks them to
stop, which they do after a step, with a checkpoint. A process that is killed from outside is started again, twice.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sheaf import errors
from sheaf.errors import SheafError, TrainingFailed
from sheaf.parallel.forker import Forker
from sheaf.processes import StopSignals

MODULE = "sheaf.tune.trial"
IMPORTS = ("sheaf.train.launch", "sheaf.train.evaluate")
ATTEMPTS = 3
POLL_SECONDS = 0.05
STOP_SECONDS = 600.0  # a trial that is asked to stop finishes its step and writes a checkpoint


@dataclass(frozen=True)
class Job:
    """trial: its number. order: what its process is to do, the arguments of `trial.reach`."""

    trial: int
    order: dict[str, Any]


class Stopped(Exception):
    """The trials were asked to stop. number: the signal that did it, 0 when time was up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Crew:
    """threads: of each process. folder: for what processes have to say. Use as a context manager."""

    def __init__(self, folder: Path, jobs: int, threads: int, ends: float | None) -> None:
        self._folder, self._jobs, self._ends = folder, jobs, ends
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._forker = Forker(MODULE, IMPORTS, self._environment)

    def __enter__(self) -> Crew:
        self._forker.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._forker.kill()
        self._forker.__exit__(*args)

    def run(self, jobs: Sequence[Job], signals: StopSignals) -> Iterator[tuple[int, SheafError | None]]:
        """Yield (trial, None or why it failed) as trials end. Raises Stopped when all have stopped early, and at once
        the error of one that says nothing about its values: a full disk, a broken store."""
        waiting, tries = deque(jobs), {job.trial: 0 for job in jobs}
        running: dict[int, Job] = {}
        while waiting or running:
            while waiting and len(running) < self._jobs and not self._over(signals):
                job = waiting.popleft()
                tries[job.trial] += 1
                running[self._start(job)] = job
            if self._over(signals):
                self._stop(running)
                raise Stopped(signals.received or 0)
            for pid in [pid for pid in running if self._forker.code(pid) is not None]:
                code, job = self._forker.code(pid) or 0, running.pop(pid)
                if code < 0 and tries[job.trial] < ATTEMPTS:
                    waiting.append(job)
                    continue
                yield job.trial, self._error(job, code)
            time.sleep(POLL_SECONDS)

    def _start(self, job: Job) -> int:
        self._answer(job).unlink(missing_ok=True)
        arguments = [str(self._answer(job)), json.dumps(job.order)]
        return self._forker.start(job.trial, self._environment, arguments, "SHEAF_TRIAL", [])

    def _over(self, signals: StopSignals) -> bool:
        return signals.received is not None or (self._ends is not None and time.monotonic() >= self._ends)

    def _stop(self, running: dict[int, Job]) -> None:
        for pid in running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(self._forker.code(pid) is None for pid in running):
            time.sleep(POLL_SECONDS)

    def _error(self, job: Job, code: int) -> SheafError | None:
        if code == 0:
            return None
        if code < 0:
            how = f"its process was killed by {signal.Signals(-code).name}, {ATTEMPTS} times"
            return TrainingFailed(how, fix="the machine may be out of memory: use fewer --jobs")
        answer = self._answer(job)
        if not answer.exists():
            return TrainingFailed(f"its process ended with exit code {code}; see its output")
        words = json.loads(answer.read_text())
        kind: Callable[..., SheafError] = SheafError
        for name in words["kinds"]:
            if isinstance(found := getattr(errors, name, None), type) and issubclass(found, SheafError):
                kind = found
                break
        return kind(words["what"], where=words["where"], why=words["why"], fix=words["fix"])

    def _answer(self, job: Job) -> Path:
        return self._folder / f"trial-{job.trial:03d}.json"
