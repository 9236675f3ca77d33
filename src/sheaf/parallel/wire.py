"""What the sums of gradients send: collectives of one group, timed and counted, on a thread beside the training.

A `Wire` is a group as one bucket's sum uses it: a few collectives that are known to work on gloo (all of equal sizes,
of bytes where the type is no plain one), and for each the bytes that this rank sends and when it began and ended.
A `Line` is the thread on which a group's sums run one after another, in the order in which they were handed in; so that
compressing, sending and the backward pass go on side by side, and no rank waits for another crosswise. Its thread
does not keep the process alive: a rank that fails must not wait for peers who wait for it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from sheaf.parallel.mesh import Group


@dataclass
class Moved:
    """What a sum has sent, and when it was at it. bytes: of this rank. spans: begin and end of each collective."""

    bytes: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)

    def seconds_before(self, end: float) -> float:
        """Of its collectives."""
        return sum(max(0.0, min(e, end) - b) for b, e in self.spans)


@dataclass
class Wire:
    """A group's collectives; called by every rank of it, in the same order."""

    group: Group
    moved: Moved = field(default_factory=Moved)

    def all_reduce(self, values: Tensor) -> None:
        """The sum over ranks, in place."""
        size = self.group.size
        with self._timed(2 * values.nbytes * (size - 1) // size):
            dist.all_reduce(values, group=self.group.handle)

    def to_first(self, values: Tensor) -> None:
        """The sum over ranks, in place on the first of them; what others have is spoilt."""
        with self._timed(values.nbytes if self.group.rank else 0):
            dist.reduce(values, self.group.members[0], group=self.group.handle)

    def from_first(self, values: Tensor) -> None:
        """What the first rank has, on all."""
        with self._timed(0 if self.group.rank else values.nbytes * (self.group.size - 1)):
            dist.broadcast(values, self.group.members[0], group=self.group.handle)

    def exchange(self, parts: Tensor) -> Tensor:
        """parts: (ranks, bytes), row r for rank r. Returns the rows that are for this rank, by sender."""
        received = torch.empty_like(parts)
        with self._timed(parts.nbytes // self.group.size * (self.group.size - 1)):
            dist.all_to_all_single(received, parts, group=self.group.handle)
        return received

    def gather(self, mine: Tensor) -> Tensor:
        """mine: (bytes,), as many on every rank. Returns those of all, (ranks, bytes)."""
        everyone = mine.new_empty(self.group.size * len(mine))
        with self._timed(mine.nbytes * (self.group.size - 1)):
            dist.all_gather_single(everyone, mine, group=self.group.handle)
        return everyone.view(self.group.size, -1)

    @contextmanager
    def _timed(self, sent: int) -> Generator[None]:
        begin = time.perf_counter()
        yield
        self.moved.spans.append((begin, time.perf_counter()))
        self.moved.bytes += sent


Work = tuple[Future[Moved], Callable[[], Moved], torch.Event | None]


class Line:
    """A thread that does what it is given, in order; on a GPU on a stream of its own."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._name = name
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], Moved]) -> Future[Moved]:
        """Returns its result to be; what it raises is raised where that is asked for. On a GPU it begins when what has
        been asked of the caller's stream so far is done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Moved] = Future()
        ready = None if self._stream is None else torch.cuda.current_stream(self._stream.device).record_event()
        self._work.put((future, work, ready))
        return future

    def join_stream(self) -> None:
        """What the caller asks of its stream from now on, on a GPU, begins when all that was submitted is done."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _run(self) -> None:
        while True:
            future, work, ready = self._work.get()
            try:
                with torch.no_grad(), torch.cuda.stream(self._stream):  # None: no stream is chosen
                    if self._stream is not None and ready is not None:
                        self._stream.wait_event(ready)
                    future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (it is raised by the training thread)
                future.set_exception(error)
