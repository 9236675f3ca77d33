"""What processes owe each other: a child ends with its parent, and a signal asks for an orderly end.

Standard library only: a child calls these before it imports anything that takes time. Cost: one system call each.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # in glibc's malloc.h
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends in any way, SIGKILL included.

    parent: its pid, told by the parent itself: one that has ended already is then noticed too.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(0)


def keep_blocks(largest: int, most: int) -> None:
    """Keep freed blocks of up to so many bytes, and so many bytes in all at the heap's end, for the next ones: glibc
    gives them back to the kernel, which fills every page with zeros before it gives it again. Holds for the whole
    process. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, largest)
        mallopt(_M_TRIM_THRESHOLD, most)


def return_blocks() -> None:
    """Give all freed blocks back to the kernel now, those that `keep_blocks` keeps too."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class StopSignals:
    """Ctrl-C and SIGTERM as a wish to stop soon, not in the middle of something.

    Inside the block the first SIGINT or SIGTERM is only noted in `received`.
    patient=False: a second one acts as usual, so that a user can still leave at once.
    patient=True (ranks): repeats are ignored, because a terminal and the launcher both send one.
    Outside the main thread, where Python forbids handlers, nothing is changed.
    """

    def __init__(self, *, patient: bool) -> None:
        self.received: int | None = None
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number
        if not self._patient:
            for each, handler in self._before.items():
                signal.signal(each, handler)


def leave(code: int) -> NoReturn:
    """End this process now, without the interpreter's farewell: a thread that is still in a collective with lost peers
    would be torn out of C++ code, which aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
