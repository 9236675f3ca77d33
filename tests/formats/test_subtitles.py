"""Subtitles: the dialogue is one record; broken cues are regions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Read = Callable[..., Any]
SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Hello,</i> world.

2
00:00:03,000 --> 00:01:04,250 X1:100 X2:200
{\\an8}- Who is it?
- Ñandú & 1 < 2.

"""
VTT = """WEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE nobody
says this

intro
00:01.000 --> 00:02.000 align:start
<v.loud Mary Ann>Hi &amp; <c.red>hello</c> <00:01.500>you

00:00:03.000 --> 01:00:04.500
Bye
"""


def meta(outcome: Any) -> Any:
    (record,) = outcome.records
    assert json.loads(record["locator"]) == {"cues": [1, json.loads(record["meta"])["cues"]]}
    return json.loads(record["meta"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_dialogue_is_one_record_in_every_encoding(read: Read, encoding: str, newline: str) -> None:
    outcome = read("a.srt", SRT.replace("\n", newline).encode(encoding))
    assert outcome.texts == ["Hello, world.\n- Who is it?\n- Ñandú & 1 < 2."]
    assert meta(outcome) == {"cues": 2, "seconds": 64.25}
    assert outcome.regions == [] and outcome.item["media"] == "application/x-subrip"


def test_webvtt_keeps_what_is_said_and_who_says_it(read: Read) -> None:
    outcome = read("a.txt", VTT.encode())
    assert outcome.texts == ["Mary Ann: Hi & hello you\nBye"]
    assert meta(outcome) == {"cues": 2, "seconds": 3604.5}
    assert outcome.item["media"] == "text/vtt"


def test_a_broken_cue_is_a_region_at_its_bytes_and_the_others_stay(read: Read) -> None:
    broken = b"2\n00:00:0x --> what\nlost\n\n"
    bad = b"3\n00:00:05,000 --> 00:00:06,000\nnot \xff\x81 text\n\n"
    start = SRT.encode().index(b"2\n00:00:03")
    data = SRT.encode()[:start] + broken + bad + SRT.encode()[start:]
    outcome = read("a.srt", data)
    assert outcome.texts == ["Hello, world.\n- Who is it?\n- Ñandú & 1 < 2."]
    assert outcome.reasons == ["bad-subtitles", "undecodable"]
    assert [json.loads(r["locator"])["bytes"] for r in outcome.regions] == [
        [start, start + len(broken) - 1],
        [start + len(broken), start + len(broken) + len(bad) - 1],
    ]
    assert outcome.records[0]["repairs"] == "lines"
    assert sum(r["bytes"] for r in outcome.regions) == len(broken) + len(bad) - 2


def test_lines_behind_a_blank_line_belong_to_the_cue_above(read: Read) -> None:
    data = b"1\n00:00:01,000 --> 00:00:02,000\nfirst\n\nstill first\n\n2\n00:00:03,000 --> 00:00:04,000\nsecond\n"
    outcome = read("a.srt", data)
    assert outcome.texts == ["first\nstill first\nsecond"]
    assert meta(outcome)["cues"] == 2


def test_a_file_without_cues_is_refused(read: Read) -> None:
    assert read("a.vtt", b"WEBVTT\n\n").reasons == ["empty"]
    assert read("a.srt", b"1\n00:00:xx --> 00:00:01\nwords\n").reasons == ["bad-subtitles"]


def test_what_only_bears_the_suffix_is_text(read: Read) -> None:
    outcome = read("a.srt", b"just some words\n")
    assert outcome.texts == ["just some words"]
    assert outcome.item["media"] == "text/plain"
