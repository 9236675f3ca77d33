"""JSON Lines: a record a line, streamed. A bad line is a region, and the next line goes on.

Strict as RFC 8259: no NaN, no trailing comma, no lone surrogate in an escape (orjson refuses them). A line holding an
object gives its text by `rows`; a string is its own text; any other value is rendered.
"""

from __future__ import annotations

import numpy as np
import orjson

from sheaf.formats import fast, rows
from sheaf.formats.encoding import MARKS, forced, wide_encoding
from sheaf.formats.piece import Batch, Columns, Context, ParseOptions, Pieces, Record, Region
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
    """Line by line; or by blocks of whole lines, where every line of a block is an object with its text in the same
    column; or by a kernel."""
    options, limit = context.options, context.limits.record_bytes
    names = (options.text,) if options.text else rows.TEXT_COLUMNS
    by_blocks, number = rows.plain(options), 0

    def otherwise(first: int, last: int, block: bytes | None) -> Pieces:
        nonlocal number
        batch = _batch(first, block, options) if block is not None and by_blocks else None
        if batch is not None:
            yield batch
            return
        for line in rows.cut(first, last, block, limit):
            piece = line if isinstance(line, Region) else _piece(*line, options, number)
            number += 1
            if piece is not None:
                yield piece

    def columns(first: int, block: bytes) -> Columns | None:
        from sheaf.formats import kernel_rows  # here: see `fast`

        return kernel_rows.json_columns(first, block, names, limit)

    for first, last, block in stream.blocks(limit, rows.at_once(limit)):
        if block is not None and by_blocks and not context.about and fast.worth(len(block)):
            yield from rows.by_kernels(first, block, columns, otherwise)
        else:
            yield from otherwise(first, last, block)


def _batch(start: int, block: bytes, options: ParseOptions) -> Batch | None:
    """The lines of a block as records; None if one of them is not as the others."""
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    ends = start + np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)) + 1)
    starts = np.append(start, ends[:-1])
    ends[-1] = start + len(block)
    if start == 0:
        lines[0] = lines[0].removeprefix(MARKS[0][0])
    try:
        values = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        return None
    texts = rows.take_texts(values, options)
    return None if texts is None else Batch(texts, starts, ends, "utf-8", values)


def _piece(start: int, end: int, data: bytes, options: ParseOptions, number: int) -> Record | Region | None:
    if start == 0:
        data = data.removeprefix(MARKS[0][0])
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _refusal(start, end, data, error) if data.strip() else None
    if isinstance(value, dict):
        return rows.record(value, start, end, "utf-8", options, number)
    return rows.value(value, start, end, "utf-8", options)


def _refusal(start: int, end: int, data: bytes, error: orjson.JSONDecodeError) -> Region:
    try:
        data.decode()
    except UnicodeDecodeError as bad:
        return Region(start, end, "undecodable", f"not UTF-8 at byte {bad.start} of the line: {bad.reason}")
    return Region(start, end, "bad-json", f"column {error.colno}: {error.msg.partition(': line')[0]}")
