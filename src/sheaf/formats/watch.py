"""Whether an item's parser still gets on. The rule:

- It may take limits.seconds of processor time without progress, and in all limits.seconds and one more for every 256 kB
  that it has read or expanded. Progress is any frame of the child; while it reads, it sends one every second. That an
  item has begun is seen within a second (or a quarter of the limit, if that is less).
- On the wall clock each of the two is four times as long for a parser that waits (that takes less than a hundredth of
  the time), and twenty times for any.

So neither the size of an item nor what else the machine does decides, and an endless drip of progress ends. Processor
time is that of the child, by the kernel's clock for it, or else a quarter of the wall clock. Neither counts while we
are busy with something else, nor the wall clock while we are stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import time
from collections.abc import Callable

from sheaf.formats.piece import ParserLimits

LEAST_BYTES_PER_SECOND = 256_000
WAITING, AT_MOST = 4.0, 20.0  # wall clock over the processor time that is allowed
IDLE = 0.01  # share of the wall clock below which a process does nothing but wait
Times = tuple[float, float]  # processor, wall


class Watch:
    """The clocks of one child."""

    def __init__(self, pid: int, limits: ParserLimits) -> None:
        self._limits = limits
        self._clock = _clock_of(pid)
        self._used = self._wall = 0.0
        self._seen = time.monotonic()
        self.begin(0, 0.0)

    def begin(self, size: int, seconds: float | None = None) -> None:
        """An item of so many bytes begins. seconds: instead of the limit."""
        limits = self._limits
        self._seconds = limits.seconds if seconds is None else seconds
        self._pause = min(1.0, max(0.01, min(self._seconds, limits.seconds) / 4))
        # What it says it has read is believed as far as an honest parser could go.
        self._most = size + min(limits.expanded_mb << 20, int(limits.ratio * size) + (1 << 20))
        self._bytes = 0
        self._began = self._last = self._now()

    def progress(self, read: int | None = None) -> None:
        """A frame came. read: bytes of the item so far, if it says. Raises TimeoutError if the item takes too long."""
        if read is not None:
            self._bytes = min(read, self._most)
        self._last = self._now()
        self._judge()

    def excuse(self) -> None:
        """We were busy, and left its frames unread: it may have gone on all the while, and none of that counts."""
        used, wall = self._used, self._wall
        self._last = self._now()
        self._began = self._began[0] + self._used - used, self._began[1] + self._wall - wall

    def wait(self, sock: socket.socket, look: Callable[[], object]) -> None:
        """Until there is something to receive. look: called before the clocks are judged, to `begin` the item that the
        child is at by now. Raises TimeoutError."""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while not poll.poll(1000 * self._pause):
            look()
            self._judge()
        if time.monotonic() > self._seen + self._pause:  # parts of a frame may come without end
            look()
            self._judge()

    def _judge(self) -> None:
        now = self._now()
        self._compare(self._last, now, self._seconds, "without progress")
        most = self._seconds + self._bytes / LEAST_BYTES_PER_SECOND
        self._compare(self._began, now, most, f"for {self._bytes:,} bytes")

    def _compare(self, then: Times, now: Times, most: float, what: str) -> None:
        used, wall = now[0] - then[0], now[1] - then[1]
        if used > most:
            raise TimeoutError(f"more than {most:.3g} s of processor time {what}")
        if wall > AT_MOST * most or (wall > WAITING * most and used < IDLE * wall):
            raise TimeoutError(f"{wall:.3g} s {what}, of which it worked {used:.2g} s")

    def _now(self) -> Times:
        """The child's processor time, and the wall clock as far as we looked on."""
        clock = time.monotonic()
        self._wall += min(clock - self._seen, 2 * self._pause)
        self._seen = clock
        if self._clock is not None:
            with contextlib.suppress(OSError):  # it has ended: the socket will say so
                self._used = time.clock_gettime(self._clock)
        else:
            self._used = self._wall / WAITING
        return self._used, self._wall


def _clock_of(pid: int) -> int | None:
    """The kernel's clock of the processor time that a process takes, with all its threads."""
    clock = ctypes.c_int()
    libc = ctypes.CDLL(None)
    return clock.value if libc.clock_getcpuclockid(pid, ctypes.byref(clock)) == 0 else None
