"""How long a failing server is tried, in a time of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sheaf.console import telling
from sheaf.sources.retry import TRIES, Line, Unreachable


class Time:
    def __init__(self) -> None:
        self.now, self.waits = 1000.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Server:
    """Away from some second on to another; counts what it is asked."""

    def __init__(self, time: Time, away: tuple[float, float] = (0, 0), **problem: Any) -> None:
        self.time, self.away, self.asked, self.problem = time, away, 0, problem

    def __call__(self) -> str:
        self.asked += 1
        if self.away[0] <= self.time.now - 1000 < self.away[1]:
            raise Unreachable("away", **self.problem)
        return "here"


def line(time: Time, seconds: float = 360.0) -> Line:
    return Line(seconds, clock=lambda: time.now, sleep=time.sleep)


def test_one_failure_is_tried_again_soon_and_with_jitter() -> None:
    waits: set[float] = set()
    for _ in range(20):
        time = Time()
        assert line(time).run(Server(time, (0, 0.05))) == "here"
        assert len(time.waits) == 1 and 0.12 < time.waits[0] <= 0.25
        waits.add(time.waits[0])
    assert len(waits) > 10


def test_a_thing_that_fails_while_its_server_answers_is_given_up_after_a_few_tries() -> None:
    time = Time()
    server = Server(time, (0, 1e9))
    with pytest.raises(Unreachable, match="away"):
        line(time).run(server, known=True)
    assert server.asked == TRIES and time.now - 1000 < 10


def test_a_five_minute_outage_of_a_known_server_is_waited_out() -> None:
    time = Time()
    server = Server(time, (0, 300), outage=True)
    assert line(time).run(server, known=True) == "here"
    assert 300 <= time.now - 1000 < 320 and server.asked < 60


def test_a_server_that_never_answered_is_not_waited_for() -> None:
    time = Time()
    with pytest.raises(Unreachable):
        line(time).run(Server(time, (0, 1e9), outage=True))
    assert time.now - 1000 < 10


def test_a_longer_outage_defers_and_what_comes_after_fails_at_once_until_the_server_is_back() -> None:
    time = Time()
    server, used = Server(time, (0, 1000), outage=True), line(time)
    with pytest.raises(Unreachable):
        used.run(server, known=True)
    assert 360 <= time.now - 1000 < 380
    asked = server.asked
    for _ in range(10_000):
        with pytest.raises(Unreachable):
            used.run(server, known=True)
    assert server.asked - asked <= 1 and time.now - 1000 < 400
    time.now = 2001.0
    assert used.run(server, known=True) == "here"
    assert used.run(server, known=True) == "here"


def test_one_thing_that_is_away_does_not_hold_up_the_rest_for_minutes_while_others_are_answered() -> None:
    time = Time()
    used = line(time)
    good = Server(time)

    def bad() -> str:
        used.run(good)  # another thread's request, answered meanwhile
        raise Unreachable("502", outage=True)

    with pytest.raises(Unreachable, match="502"):
        used.run(bad, known=True)
    assert time.now - 1000 < 10


def test_progress_is_no_failure() -> None:
    time = Time()
    left = [50]

    def piecemeal() -> str:
        left[0] -= 1
        if left[0]:
            raise Unreachable("cut", outage=True, progress=True)
        return "whole"

    assert line(time).run(piecemeal) == "whole"


@pytest.mark.parametrize(("asks", "waited"), [(7.0, True), (59.0, True), (61.0, False), (1e9, False)])
def test_what_the_server_asks_for_is_kept_by_everyone_or_the_thing_is_deferred(asks: float, waited: bool) -> None:
    time = Time()
    used = line(time)
    server = Server(time, (0, 0.01), outage=True, after=asks)
    run: Callable[[], str] = lambda: used.run(server, known=True)  # noqa: E731
    if waited:
        assert run() == "here" and time.now - 1000 >= asks
    else:
        for _ in range(3):
            with pytest.raises(Unreachable):
                run()
        assert time.now == 1000 and server.asked == 1


def test_a_final_answer_is_an_answer() -> None:
    time = Time()
    used = line(time)

    def final() -> str:
        raise ValueError("404")

    with pytest.raises(ValueError):
        used.run(final)
    assert used.run(Server(time, (0, 100), outage=True)) == "here"  # known by now, so waited for


def test_a_wait_is_told_with_who_is_waited_for_and_its_end_too() -> None:
    time, told = Time(), list[str]()
    used = Line(360.0, clock=lambda: time.now, sleep=time.sleep, what="the object store of source 'x'")
    with telling(told.append):
        assert used.run(Server(time, (0, 3), outage=True), known=True) == "here"
        assert told == []
        time.now = 1000.0
        assert used.run(Server(time, (0, 200), outage=True), known=True) == "here"
    assert told == [
        "the object store of source 'x' does not answer; it is asked again for up to 6 min 00 s, what was done is kept",
        "the object store of source 'x' answers again",
    ]
