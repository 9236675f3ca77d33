"""Ctrl-C and SIGTERM as a wish to stop after this step, not in the middle of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Inside the block the first SIGINT or SIGTERM is only noted in `received`.

    patient=False (one process): a second one acts as usual, so that a user can still leave at once.
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
