"""How long to try: backoff with jitter, what a server asks for, and outages that are waited out or deferred.

One failing request says little, so what is known of a server is kept in one place, its `Line`, for all threads that
talk to it. A request is tried 6 times, 0.25 s, 0.5 s, … apart, half of that at random (so that threads do not return
all at once; Brooker 2015). While *nothing* at that server answers, a request for what was listed before goes on trying
for up to 6 minutes, every 15 s: a restart, a failing balancer or a 5-minute outage costs time and nothing else. After
that the server is down: further requests fail at once, one in 15 s finds out whether it is back. What is not had then
is deferred: the next run takes up exactly that.

A place that has not answered once is not waited for: more likely its name is wrong, and the user sits there.
Retry-After (RFC 9110, 10.2.3) is kept by all threads; more than a minute of it is a deferral.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sheaf.console import duration, tell
from sheaf.errors import RecipeError
from sheaf.recipe import SourceSpec

TRIES = 6
FIRST_SECONDS = 0.25  # before the second try; doubled before each further one
MOST_SECONDS = 15.0  # between two tries, and between two looks whether a server that was down is back
OUTAGE_SECONDS = 360.0  # for which a server that answers nothing is waited for
ASKED_SECONDS = 60.0  # longest Retry-After that is waited for
TELL_SECONDS = 5.0  # of waiting for a server, after which the user is told of it
DOWN_SECONDS = 30.0  # without any answer, after which not every request is tried any more, however short the patience
PROGRESS_BYTES = 1 << 20
# A server that drips a byte every few seconds meets no time-out; it meets this.
SLOW_AFTER_SECONDS, SLOWEST_BYTES_PER_SECOND = 60.0, 1024
T = TypeVar("T")


class Unreachable(Exception):
    """No good answer now; it may come later.

    outage: it looks as if the whole server were away, not this one thing. after: seconds that it asks to be left
    alone. progress: the try brought a good part of what was wanted, so it does not count against the limit.
    """

    def __init__(self, why: str = "", *, outage: bool = False, after: float = 0.0, progress: bool = False) -> None:
        super().__init__(why)
        self.outage, self.after, self.progress = outage, after, progress


class Line:
    """What is known of one server: since when it has not answered, and until when it asked to be left alone.

    Safe for threads. clock and sleep are parameters so that minutes can be tested in no time.
    """

    def __init__(
        self,
        outage_seconds: float = OUTAGE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        what: str = "a server",
    ) -> None:
        self._patience, self._clock, self._sleep, self._what = outage_seconds, clock, sleep, what
        self._lock = threading.Lock()
        self._told = False  # that it is waited for
        self._silent_since: float | None = None  # of failures that look like an outage, with no answer between
        self._not_before = 0.0
        self._next_look = 0.0
        self._answers = 0  # to anyone

    def run(self, attempt: Callable[[], T], *, known: bool = False) -> T:
        """What the attempt gives, in the end. known: the server was seen answering before, so an outage is waited out.

        Raises the last Unreachable; any other exception of the attempt is an answer and goes through.
        """
        tries = _Tries()
        while True:
            self._await_turn()
            try:
                result = attempt()
            except Unreachable as problem:
                if self._give_up(problem, tries, known):
                    raise
                self._tell()
                self._sleep(_backoff(tries.failures))
            except Exception:
                self._hears()
                raise
            else:
                self._hears()
                return result

    def _await_turn(self) -> None:
        """Wait as long as the server asked. Raises Unreachable while it is down and was looked at just now."""
        with self._lock:
            now = self._clock()
            if self._is_down(now):
                if now < self._next_look:
                    raise Unreachable("the server has not answered for a while", outage=True)
                self._next_look = now + MOST_SECONDS
            wait = self._not_before - now
        if wait > ASKED_SECONDS:
            raise Unreachable(f"the server asks to be left alone for {wait:,.0f} s")
        if wait > TELL_SECONDS:
            tell(f"{self._what} asks to be left alone for a while; it is waited for")
        if wait > 0:
            self._sleep(wait * random.uniform(1.0, 1.1))

    def _give_up(self, problem: Unreachable, tries: _Tries, known: bool) -> bool:
        """Enter the failure, and decide."""
        with self._lock:
            now = self._clock()
            self._not_before = max(self._not_before, now + problem.after)
            if problem.after > ASKED_SECONDS:
                return True
            if not problem.outage or problem.progress:
                self._answers, self._silent_since = self._answers + 1, None
            tries.failures = 1 if problem.progress else tries.failures + 1
            # While nobody is answered it is the server, not this one thing: such failures do not count.
            silence, tries.answers = tries.answers == self._answers, self._answers
            if not (silence and problem.outage and (known or self._answers)):
                tries.counted = 1 if problem.progress else tries.counted + 1
            if not problem.outage:
                return tries.counted >= TRIES
            if self._silent_since is None:
                self._silent_since = now
            if self._is_down(now):
                self._next_look = now + MOST_SECONDS
                return True
            return max(tries.counted, tries.failures * (now - self._silent_since >= self._patience)) >= TRIES

    def _tell(self) -> None:
        with self._lock:
            since = self._silent_since
            if since is None or self._clock() - since < TELL_SECONDS:
                return
            self._told = True
        most = max(self._patience, DOWN_SECONDS)
        tell(f"{self._what} does not answer; it is asked again for up to {duration(most)}, what was done is kept")

    def _is_down(self, now: float) -> bool:
        since = self._silent_since
        return since is not None and now - since >= max(self._patience, DOWN_SECONDS)

    def _hears(self) -> None:
        with self._lock:
            self._answers, self._silent_since = self._answers + 1, None
            back, self._told = self._told, False
        if back:
            tell(f"{self._what} answers again")


@dataclass(slots=True)
class _Tries:
    """Of one request. counted: failures that speak against it; answers: how many the server had given at the last."""

    failures: int = 0
    counted: int = 0
    answers: int = -1


class Pace:
    """Of one body: a server that sends too slowly is stopped."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def check(self, received_bytes: int) -> None:
        """Raises Unreachable."""
        seconds = time.monotonic() - self._begun
        if seconds > SLOW_AFTER_SECONDS and received_bytes < seconds * SLOWEST_BYTES_PER_SECOND:
            raise Unreachable(f"the server sends less than {SLOWEST_BYTES_PER_SECOND} bytes a second")


def patience(spec: SourceSpec) -> float:
    """The seconds of an outage that are waited out. Raises RecipeError."""
    text = spec.options.get("patience", str(OUTAGE_SECONDS))
    try:
        return max(0.0, float(str(text)))
    except ValueError:
        where = f"source '{spec.name}', options.patience"
        raise RecipeError("patience is a number of seconds", where=where, fix='patience: "360"') from None


def enough(got_bytes: int, size: int) -> bool:
    """Whether a try that broke off got on, so that it need not count: 100 such tries, or one a MiB, are the whole."""
    return got_bytes >= min(max(size // 100, 1), PROGRESS_BYTES)


def _backoff(failures: int) -> float:
    return min(FIRST_SECONDS * 2 ** min(failures - 1, 16), MOST_SECONDS) * random.uniform(0.5, 1.0)
