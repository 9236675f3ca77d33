"""JSON Lines: a record a line, streamed. A bad line is a region, and the next line goes on.

Strict as RFC 8259: no NaN, no trailing comma, no lone surrogate in an escape (orjson refuses them). A line holding an
object gives its text by `rows`; a string is its own text; any other value is rendered.
"""

from __future__ import annotations

import orjson

from sheaf.formats import rows
from sheaf.formats.encoding import MARKS, forced, wide_encoding
from sheaf.formats.piece import Context, Pieces, Region
from sheaf.formats.stream import Stream


def parse(stream: Stream, context: Context) -> Pieces:
    wide = unicode_encoding(stream)
    if wide != "utf-8":
        yield from rows.transcoded(stream, context, wide, _lines)
    else:
        yield from _lines(stream, context)


def unicode_encoding(stream: Stream) -> str:
    """JSON is Unicode: UTF-8 (RFC 8259, 8.1), or UTF-16/32 which older writers still produce; or what a recipe says."""
    if forced():
        return forced()
    head = stream.peek(4096)
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    return (wide_encoding(head[: len(head) // 4 * 4]) or "utf-8") if b"\0" in head else "utf-8"


def _lines(stream: Stream, context: Context) -> Pieces:
    options = context.options
    for number, line in enumerate(rows.lines_or_refusals(stream, context.limits.record_bytes)):
        if isinstance(line, Region):
            yield line
            continue
        start, end, data = line
        if start == 0 and data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            if data.strip():
                yield _refusal(start, end, data, error)
            continue
        if isinstance(value, dict):
            yield rows.record(value, start, end, "utf-8", options, number)
        else:
            yield rows.value(value, start, end, "utf-8", options)


def _refusal(start: int, end: int, data: bytes, error: orjson.JSONDecodeError) -> Region:
    try:
        data.decode()
    except UnicodeDecodeError as bad:
        return Region(start, end, "undecodable", f"not UTF-8 at byte {bad.start} of the line: {bad.reason}")
    return Region(start, end, "bad-json", f"column {error.colno}: {error.msg.partition(': line')[0]}")
