"""Runs tasks on processes of this machine; a worker that dies costs its task a retry and nobody else anything.

One pipe pair a worker, one task at a time each; the parent waits on all of them with a selector. End of file on a pipe
is a worker's death, so there is no shared queue or lock that a killed process could leave locked (with pebble, an idle
worker that is killed breaks the pool; with multiprocessing, a script without a `__main__` guard runs itself again in
every worker). Cost: 60 ms to start a worker, 0.2 ms a task; memory is bounded by one task and one result a worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from sheaf.console import tell
from sheaf.engine.base import Json, Task
from sheaf.engine.failures import ATTEMPTS, Attempt, failure, joined, too_many_deaths
from sheaf.engine.worker import encode, one_thread
from sheaf.errors import EnvironmentProblem, SheafError, UsageError

GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL
READ_BYTES = 1 << 20
BOOT = """\
import json, sys
about = json.loads(sys.argv[1])
sys.path[:] = about["path"]
from sheaf.engine.worker import main
main(about["parent"], about["prefixes"])
"""
LISTEN_SECONDS = 1.0  # how often a silent worker is looked at; a process that it forked may hold its pipe open


class LocalEngine:
    """Processes on this machine, started when first needed and kept between runs. Use from one thread at a time."""

    def __init__(self, workers: int | None = None, prefixes: Sequence[str] = ("sheaf",)) -> None:
        """workers: default one for each CPU that this process may use. prefixes: modules that tasks may come from."""
        if workers is not None and workers < 1:
            raise UsageError(f"an engine needs at least one worker, not {workers}", fix="give a number from 1 up")
        self.workers = workers or len(os.sched_getaffinity(0))
        self._prefixes = tuple(prefixes)
        self._pool: list[_Worker] = []

    def run(
        self, tasks: Iterable[Task], progress: Callable[[int], None] | None = None
    ) -> Generator[tuple[Task, Json], None, None]:
        """Yield (task, result) as tasks finish. `tasks` is drawn from only as workers become free.

        Raises, after the tasks already running have ended: the SheafError that a task raised, as it was; TaskFailed
        for any other exception; EnvironmentProblem for a task that killed its worker three times.
        """
        with _Run(self._pool, self._prefixes, self.workers, iter(tasks)) as run:
            for task, result in run.results():
                if progress is not None:
                    progress(task.weight)
                yield task, result

    def close(self) -> None:
        """End the workers. Idle ones leave by themselves; a later run would start new ones."""
        _stop(self._pool)
        self._pool.clear()


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    attempt: Attempt | None = None
    received: bytearray = field(default_factory=bytearray)

    @staticmethod
    def start(prefixes: Sequence[str]) -> _Worker:
        about = json.dumps({"path": sys.path, "prefixes": prefixes, "parent": os.getpid()})
        command = [sys.executable, "-P", "-c", BOOT, about]
        env = dict(os.environ) | one_thread()
        # Its own process group: Ctrl-C reaches only the parent, and the group's children can be ended with it.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, process_group=0, bufsize=0
        )
        worker = _Worker(process)
        os.set_blocking(_stdout(worker).fileno(), False)
        return worker

    def give(self, attempt: Attempt) -> bool:
        """Send a task; False if the worker is already dead (the task is then not to blame)."""
        assert self.process.stdin is not None
        line = encode({"function": attempt.task.function, "arguments": attempt.task.arguments})
        try:
            view = memoryview(line)
            while view:
                view = view[self.process.stdin.write(view) :]
        except BrokenPipeError:
            return False
        self.attempt = attempt
        return True

    def read(self) -> Json | None:
        """What has arrived: an answer, {} while it is incomplete, None when the worker has died. Notes are told."""
        try:
            data = os.read(_stdout(self).fileno(), READ_BYTES)
        except BlockingIOError:  # it is dead, and a process that it forked holds the pipe open
            data = b""
        self.received += data
        if not data:
            return None
        if b"\n" not in data:
            return {}
        *lines, rest = bytes(self.received).split(b"\n")
        self.received[:] = rest
        answer: Json = {}
        for message in map(json.loads, lines):
            if "note" in message:
                tell(message["note"])
            else:
                answer = message
        return answer


class _Run:
    """One call of LocalEngine.run: hands out tasks, collects answers, retries after deaths."""

    def __init__(self, pool: list[_Worker], prefixes: Sequence[str], workers: int, tasks: Iterator[Task]) -> None:
        self.pool, self.prefixes, self.workers, self.tasks = pool, prefixes, workers, tasks
        self.again: deque[Attempt] = deque()
        self.failure: SheafError | None = None
        self.selector = selectors.DefaultSelector()
        for worker in pool:
            self.selector.register(_stdout(worker), selectors.EVENT_READ, worker)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.selector.close()
        # Left early (Ctrl-C, an error in the consumer): nobody would read these answers.
        busy = [w for w in self.pool if w.attempt is not None]
        self.pool[:] = [w for w in self.pool if w.attempt is None]
        _stop(busy)

    def results(self) -> Iterator[tuple[Task, Json]]:
        self._hand_out()
        while any(w.attempt for w in self.pool):
            for worker in self._listen():
                finished = self._hear(worker) if worker in self.pool else None
                self._hand_out()  # before the consumer takes its time
                if finished is not None:
                    yield finished
        if self.failure is not None:
            raise self.failure

    def _hand_out(self) -> None:
        """Give every free worker a task, until there are no more or one has failed."""
        while self.failure is None and sum(w.attempt is not None for w in self.pool) < self.workers:
            attempt = self._next()
            if attempt is None:
                return
            while not (worker := self._free_worker()).give(attempt):
                self._bury(worker)

    def _next(self) -> Attempt | None:
        if self.again:
            return self.again.popleft()
        task = next(self.tasks, None)
        return None if task is None else Attempt(task)

    def _listen(self) -> list[_Worker]:
        ready = self.selector.select(LISTEN_SECONDS)
        return [key.data for key, _ in ready] or [w for w in self.pool if w.process.poll() is not None]

    def _free_worker(self) -> _Worker:
        for worker in self.pool:
            if worker.attempt is None:
                return worker
        worker = _Worker.start(self.prefixes)
        self.pool.append(worker)
        self.selector.register(_stdout(worker), selectors.EVENT_READ, worker)
        return worker

    def _bury(self, worker: _Worker) -> int:
        """Forget a dead worker, and end what it started; its exit code."""
        self.selector.unregister(_stdout(worker))
        self.pool.remove(worker)
        _stop([worker])
        return worker.process.returncode

    def _hear(self, worker: _Worker) -> tuple[Task, Json] | None:
        """Take in what a worker says; a pair when it has finished a task."""
        answer, attempt = worker.read(), worker.attempt
        if answer is None:
            code = self._bury(worker)
            if attempt is not None:
                self._died(attempt, code)
            return None
        if not answer or attempt is None:
            return None
        worker.attempt = None
        if "result" in answer:
            return attempt.task, answer["result"]
        self._failed(failure(attempt.task, answer))
        return None

    def _died(self, attempt: Attempt, code: int) -> None:
        attempt.deaths += 1
        if attempt.deaths < ATTEMPTS:
            self.again.append(attempt)
        else:
            self._failed(_killer(attempt, code))

    def _failed(self, error: SheafError) -> None:
        self.failure = joined(self.failure, error)


def _stop(workers: Sequence[_Worker]) -> None:
    """End workers and whatever they started in their groups; the busy ones may clean up for a moment."""
    for worker in workers:
        if worker.attempt is not None:
            worker.process.terminate()
        _close(worker.process.stdin)  # an idle one leaves at the end of its input
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        _close(worker.process.stdout)


def _stdout(worker: _Worker) -> IO[bytes]:
    assert worker.process.stdout is not None
    return worker.process.stdout


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def _killer(attempt: Attempt, code: int) -> EnvironmentProblem:
    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    memory = "the machine may be out of memory: use fewer workers" if code == -signal.SIGKILL else "see stderr above"
    return too_many_deaths(attempt.task, f"the last worker {ending}", memory)
