"""Progress off and on a terminal, and text that is safe to show."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheaf import show
from sheaf.console import TerminalConsole, duration, printable, size


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def read_all(master: int) -> str:
    """What is written to a pseudo-terminal until its last writer is gone."""
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO is how Linux says end
        while data := file.read(4096):
            seen += data
    return seen.decode()


def test_off_a_terminal_a_stage_is_a_line_at_each_end_and_one_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with TerminalConsole(stream, clock=clock).stage("read", 100, "items") as advance:
        for _ in range(40):
            clock.now += 1
            advance(1)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "read: 100 items …",
        "read: 10 items (10%)",
        "read: 20 items (20%)",
        "read: 30 items (30%)",
        "read: 40 items (40%)",
        "read: 40 items in 40 s",
    ]


def test_off_a_terminal_no_escape_sequence_is_written() -> None:
    stream = io.StringIO()
    console = TerminalConsole(stream)
    with console.stage("\x1b[31mred", None, "B") as advance:
        advance(5)
        console.note("\x1b]0;title\x07")
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[31mred" in stream.getvalue()


def test_a_stage_that_fails_does_not_say_that_it_ended() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), TerminalConsole(stream).stage("read", 3, "items"):
        raise ValueError
    assert stream.getvalue() == "read: 3 items …\n"


def test_on_a_terminal_stages_nest_and_are_advanced_from_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    master, slave = pty.openpty()
    read = ThreadPoolExecutor(1).submit(read_all, master)
    with os.fdopen(slave, "w") as stream:
        console = TerminalConsole(stream)
        assert console.bars
        with console.stage("outer [bold]", 2, "items") as outer, console.stage("inner", None, "B") as inner:
            threads = [threading.Thread(target=inner, args=(1000,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            outer(2)
            console.note("a \x1b[2J note")
    seen = read.result()
    assert "outer [bold]" in seen
    assert "8 kB" in seen
    assert "2 items of 2 items" in seen
    assert "a \\x1b[2J note" in seen


@given(st.text(st.characters(codec=None), max_size=50))
def test_printable_text_holds_no_character_that_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) <= 0x9F or 0x202A <= ord(c) <= 0x202E or 0xD800 <= ord(c) <= 0xDFFF for c in shown)
    shown.encode()


@given(st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=50))
def test_printable_leaves_words_of_every_script_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_markup_and_controls_in_documents_reach_the_reader_as_they_are_or_escaped() -> None:
    data = {
        "step": 1,
        "samples": [
            {
                "sample": 0,
                "rank": 0,
                "row": 0,
                "documents": [
                    {
                        "record": "00",
                        "tokens": [0, 3],
                        "text": "[red]not red[/red] [link=x]\x1b[31m :smile:\nnext",
                        "origins": [{"source": "s", "uri": "/a/[b]\x1b", "member": "", "locator": {"bytes": [0, 9]}}],
                    }
                ],
            }
        ],
    }
    text = show.render(show.traced(data), io.StringIO())
    assert "[red]not red[/red] [link=x]\\x1b[31m :smile: next" in text
    assert "s: /a/[b]\\x1b (bytes 0 to 9)" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\n\ntwo  three\n", "one two three"),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 300 + " …"),
        ("a" + " " * 700 + "b", "a …"),
    ],
)
def test_a_traced_text_ends_in_dots_only_where_something_is_left_out(text: str, shown: str) -> None:
    document = {"record": "00", "tokens": [0, 3], "text": text, "origins": []}
    traced = {"step": 1, "samples": [{"sample": 0, "rank": 0, "row": 0, "documents": [document]}]}
    assert show.render(show.traced(traced), io.StringIO()).endswith(f"\n    | {shown}\n")


def test_a_traced_token_is_shown_once_with_what_it_predicts() -> None:
    token = {"position": 5, "id": 363, "text": " (", "predicts": {"id": 7, "text": "Unicode"}}
    document = {"record": "00", "tokens": [5, 6], "origins": [], **token}
    traced = {"step": 1, "samples": [{"sample": 0, "rank": 0, "row": 0, "documents": [document]}]}
    shown = show.render(show.traced(traced), io.StringIO())
    assert shown.endswith("\n    position 5: token 363 ' (' predicts token 7 'Unicode'\n")


def test_off_a_terminal_long_lines_are_not_folded() -> None:
    data = {"run": "x", "report": "/" + "long/" * 100 + "report.html"}
    assert data["report"] in show.render(show.report(data), io.StringIO())
    assert "y" * 500 in show.render(show.pairs({"value": "y" * 500}), io.StringIO())


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234567, "1.23 MB"), (123456789, "123 MB"), (999_700, "1 MB")],
)
def test_sizes_have_three_digits(n: int, text: str) -> None:
    assert size(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
