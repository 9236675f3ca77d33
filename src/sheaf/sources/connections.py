"""Threads that wait for servers, and that nobody has to wait for.

The standard library's pool is waited for when its block ends and again when the process does: Ctrl-C while a server is
away would take as long as the server's patience. These threads are daemons: left in the ordinary way the pool is waited
for, left by an error or an interruption it is not, and what was not begun is dropped. `promptly` runs one call of a
library that does not look at signals. Cost: 0.1 ms a thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
_Job = tuple[Future[Any], Callable[[], Any]]


class Connections:
    """A pool of `most` threads, started as they are needed. A context manager."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Connections:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=error is None)

    def submit(self, call: Callable[[S], T], argument: S) -> Future[T]:
        """Have it called by a thread that is free, in the order of asking."""
        future: Future[T] = Future()
        self._jobs.put((future, lambda: call(argument)))
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def map(self, call: Callable[[S], T], arguments: Iterable[S]) -> Iterator[T]:
        """The results in order; raises what a call raised when its turn comes."""
        futures = [self.submit(call, argument) for argument in arguments]
        return (future.result() for future in futures)

    def close(self, *, wait: bool) -> None:
        """Drop what was not begun. wait: until what was begun has ended."""
        while (job := self._next()) is not None:
            job[0].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get_nowait()
        except queue.Empty:
            return None

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            _settle(*job)


def promptly(call: Callable[[], T]) -> T:
    """What the call gives or raises. In the main thread it can be interrupted, whatever the call is doing: it then goes
    on for nobody, in a thread that ends with the process."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    future: Future[T] = Future()
    threading.Thread(target=_settle, args=(future, call), name="sheaf-call", daemon=True).start()
    return future.result()


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 it belongs to whoever asks for the result
        future.set_exception(error)
