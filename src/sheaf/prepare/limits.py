"""Bounds for a chat template, which is a program that came with a download: processor time and memory.

By the process' own alarm and limit, so it costs two system calls a conversation. Python looks at signals between its
instructions and inside long multiplications; what takes long without either takes memory, which is bounded.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sheaf.errors import RecipeError

SECONDS = 10.0  # of processor time for one conversation; a usual one takes less than a thousandth
EXTRA_BYTES = 2 << 30  # of memory, beyond what the process has when rendering begins


class TooDear(RecipeError):
    """A template that takes more time or memory than a conversation may cost."""


@contextmanager
def limited(seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> Generator[Callable[[], None]]:
    """Inside the block: TooDear after so much processor time, MemoryError beyond so much memory. The value is a
    function that winds the clock up again, for the next conversation.

    Only a process' main thread has such an alarm; tasks of an engine run there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def stop(_number: int, _frame: object) -> None:
        raise too_dear(f"{seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = _address_space() + extra_bytes
    if soft == resource.RLIM_INFINITY or ceiling < soft:
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
    _wind(seconds)
    try:
        yield lambda: _wind(seconds)
    finally:
        _wind(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def too_dear(what: str) -> TooDear:
    return TooDear(
        "the chat template takes too much on one conversation",
        why=f"more than {what}",
        fix="set `prepare.template` to another template, such as chatml",
    )


def _wind(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
