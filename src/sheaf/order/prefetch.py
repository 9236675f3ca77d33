"""Run an iterator ahead of its consumer, in one thread, and end that thread whatever happens.

A bounded buffer under one condition variable: no polling, no time-outs. The thread ends when the iterator does, when it
raises (the consumer gets the exception, after what came before it), or when the consumer closes, which waits for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """An iterator over `source` that keeps up to `depth` results ready."""

    def __init__(self, source: Iterator[T], depth: int, name: str) -> None:
        self._source, self._depth = source, depth
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while not (self._ready or self._ended or self._closed):
                self._changed.wait()
            if self._closed:
                raise StopIteration
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Stop the thread and wait for its end. What was ready is dropped. Harmless when repeated."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            for result in self._source:
                with self._changed:
                    while len(self._ready) >= self._depth and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        break
                    self._ready.append(result)
                    self._changed.notify_all()
        except BaseException as raised:  # noqa: BLE001 - carried to the consumer's thread, not swallowed
            error = raised
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()


def grouped(source: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of 1, 2, 4 … `size` results, the last perhaps shorter: the first comes soon. What came before an exception
    is not lost."""
    group: list[T] = []
    now = 1
    try:
        for result in source:
            group.append(result)
            if len(group) == now:
                yield group
                group, now = [], min(2 * now, size)
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group
