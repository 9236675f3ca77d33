"""Subtitles, SRT and WebVTT: the dialogue of a file is one record, {"cues": [1, n]}, a line a line.

Its meta says how many cues there are and the second at which the last one ends. Numbers, times, marks of style and
comments are structure; a speaker that WebVTT names goes before his words. A cue without a time that can be read, or
with bytes that are no text, is a region, and the others go on; lines behind a blank line go on with the cue above, as
players show them. The file is held in memory, up to limits.record_mb.

Formats: https://www.w3.org/TR/webvtt1/; SRT has no standard: it is what SubRip writes and players read.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sheaf.formats import rows, text
from sheaf.formats.encoding import MARKS, STATEFUL, WIDE, decode
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream, from_bytes

_CLOCK = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}(?:\s|$)")
_SPEAKER = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_TAG = re.compile(r"</?(?:[biusv]|c|ruby|rt|lang|font|\d[\d:.]*)(?:[.\s][^>]*)?>|\{\\[^}]*\}", re.I)
_ASIDE = re.compile(r"(?:NOTE|STYLE|REGION)(?:\s|$)")


@dataclass(slots=True)
class _Block:
    """Lines between blank ones, at bytes [start, end). bad: one of them is no text."""

    start: int
    end: int
    lines: list[str] = field(default_factory=list)
    bad: bool = False


def parse_srt(stream: Stream, context: Context) -> Pieces:
    yield from _parse(stream, context, vtt=False)


def parse_vtt(stream: Stream, context: Context) -> Pieces:
    yield from _parse(stream, context, vtt=True)


def _parse(stream: Stream, context: Context, vtt: bool) -> Pieces:
    raw = stream.read_all(context.limits.record_bytes)
    encoding = _encoding(raw, text.charset_of(context.media))
    if encoding in WIDE or encoding in STATEFUL:
        moved = from_bytes(raw)
        if encoding in STATEFUL:
            yield from text.whole(raw, encoding)
        else:
            yield from rows.transcoded(moved, context, encoding, _utf8_vtt if vtt else _utf8_srt)
        return
    yield from _cues(raw, encoding, vtt)


def _utf8_srt(stream: Stream, context: Context) -> Pieces:
    yield from _cues(stream.read_all(context.limits.document_bytes), "utf-8", False)


def _utf8_vtt(stream: Stream, context: Context) -> Pieces:
    yield from _cues(stream.read_all(context.limits.document_bytes), "utf-8", True)


def _encoding(raw: bytes, declared: str) -> str:
    try:
        return decode(raw, declared).encoding
    except Refused:
        good = sum(_is_utf8(line) for line in raw.split(b"\n"))
        if b"\0" in raw or good * 2 < raw.count(b"\n"):
            raise
        return "utf-8"  # some bad lines: their cues alone are refused


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _cues(raw: bytes, encoding: str, vtt: bool) -> Pieces:
    words: list[str] = []
    cues, seconds, refused, behind = 0, 0.0, 0, False
    for block in _blocks(raw, encoding):
        if vtt and (block.start == 0 or (not _timed(block) and _ASIDE.match(block.lines[0]))):
            behind = False
            continue
        times = _timed(block)
        if block.bad or (times is None and (not behind or any("-->" in line for line in block.lines))):
            detail = "a line is not text" if block.bad else f"no time can be read: {block.lines[0][:80]!r}"
            yield Region(block.start, block.end, "undecodable" if block.bad else "bad-subtitles", detail)
            refused, behind = refused + block.end - block.start, False
            continue
        lines = block.lines
        if times is not None:
            at, last = times
            cues, seconds = cues + 1, max(seconds, last)
            lines = lines[at + 1 :]
        words.extend(said for line in lines if (said := _said(line, vtt)))
        behind = True
    meta = {"cues": cues, "seconds": round(seconds, 3)}
    place = {"cues": [1, cues]}
    weight = len(raw) - refused
    if cues:
        yield Record("\n".join(words), 0, len(raw), encoding, meta, weight, refused > 0, place)
    elif not refused:
        raise Refused("empty", "no cue in it")


def _blocks(raw: bytes, encoding: str) -> Iterator[_Block]:
    block, at = _Block(0, 0), 0
    for data in raw.splitlines(keepends=True):
        start, at = at, at + len(data)
        if start == 0:
            data = data.removeprefix(MARKS[0][0])
        bad = False
        try:
            line = data.decode(encoding).rstrip("\r\n")
        except UnicodeDecodeError:
            line, bad = data.decode("ascii", "replace"), True
        if line.strip():
            if not block.lines:
                block.start = start
            block.lines.append(line)
            block.bad, block.end = block.bad or bad, at
        elif block.lines:
            yield block
            block = _Block(at, at)
    if block.lines:
        yield block


def _timed(block: _Block) -> tuple[int, float] | None:
    """(which line has the times, the second at which the cue ends); it is the first, or the second below a name."""
    for n, line in enumerate(block.lines[:2]):
        found = _TIMES.match(line)
        if found:
            hours, minutes, seconds, fraction = found.groups(default="0")[4:]
            return n, 3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(fraction) / 10 ** len(fraction)
    return None


def _said(line: str, vtt: bool) -> str:
    line = _TAG.sub("", _SPEAKER.sub(r"\1: ", line))
    return (html.unescape(line) if vtt else line).strip()
