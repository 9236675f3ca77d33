"""Where personal data and secrets lie in many texts: kind and place, never what was found.

One pass of a kernel over the UTF-8 bytes (some 400 MB/s) marks the few stretches that a rule's matches can lie in: runs
of the characters of e-mail addresses with an @ in it, runs of digits and separators with enough of either, hexadecimal
groups with colons, two capitals and two digits, words that tokens begin with. Only there are the patterns tried, some
microseconds a stretch. This finds what every pattern finds over the whole text, because a shape's stretch is a maximal
run of the characters that the shape's patterns take (a resident id's last X aside), and all else begins with its lead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sheaf.kernel import kernel, read_only
from sheaf.privacy.plain import Span, apart
from sheaf.privacy.rules import (
    AMERICAN,
    CARD,
    EMAIL,
    HEX,
    IBAN,
    IP4,
    LANDLINE,
    MOBILE,
    PLUS,
    RESIDENT,
    RULES,
    SOCIAL,
    ZEROS,
)

FINDINGS = pa.schema(
    [
        pa.field("row", pa.int32()),
        pa.field("kind", pa.string()),  # of KINDS
        pa.field("start", pa.int64()),  # in UTF-8 bytes of the text
        pa.field("end", pa.int64()),
    ]
)


def find(texts: pa.LargeStringArray) -> pa.Table:
    """All findings in these texts, by row and place; of two that overlap, the one of the earlier rule. FINDINGS."""
    rows: list[int] = []
    spans: list[Span] = []
    for row, found in _by_row(texts):
        spans += found
        rows += [row] * len(found)
    starts, ends, kinds = zip(*spans, strict=True) if spans else ((), (), ())
    return pa.table({"row": rows, "kind": kinds, "start": starts, "end": ends}, schema=FINDINGS)


def spans_of(text: bytes) -> list[Span]:
    """The findings in one text, by place."""
    bounds = np.array([0, len(text)], np.int64)
    array = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(bounds), pa.py_buffer(text)])
    return next((found for _, found in _by_row(array)), [])


def values_of(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of all texts one after another, and where each begins and ends in them; nothing is copied."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1] if offsets else _NONE
    return read_only(np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)), read_only(bounds)


_NONE = np.zeros(1, np.int64)
_LAST_OF_RULE = 8  # bytes after a stretch that its patterns may look at


def _by_row(texts: pa.LargeStringArray) -> Iterator[tuple[int, list[Span]]]:
    data, bounds = values_of(texts)
    marks = _marks(data, bounds)
    if not len(marks):
        return
    view = data.data
    cuts = np.append(np.flatnonzero(np.diff(marks[:, 0], prepend=-1)), len(marks)).tolist()
    for first, last in pairwise(cuts):
        row = int(marks[first, 0])
        found = _settled(view[int(bounds[row]) : int(bounds[row + 1])], marks[first:last, 1:].tolist())
        if found:
            yield row, found


def _settled(text: memoryview, marks: list[list[int]]) -> list[Span]:
    """What the rules find at these marks: [what, start, end]; by place, without overlap."""
    done = [0] * len(RULES)  # how far each rule has come: matches of one do not overlap
    found: list[tuple[int, int, int]] = []
    for what, start, end in marks:
        for number in _BY_LEAD[-what] if what < 0 else _by_shape(what):
            rule = RULES[number]
            if rule.leads or rule.shape == IBAN:
                match = rule.pattern.match(text, start) if start >= done[number] else None
                matches = [] if match is None else [match]
            else:
                stop = min(end + _LAST_OF_RULE, len(text))
                matches = rule.pattern.finditer(text, max(start, done[number]), stop)
            for match in matches:
                if match.start() >= end:
                    break
                done[number] = match.end()
                at, until = match.span("value") if "value" in rule.pattern.groupindex else match.span()
                if rule.holds(bytes(text[at:until])):
                    found.append((number, at, until))
    return apart(found)


def _marks(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (n, 4): row, what (shapes, or minus the number of a lead), start and end in the row's bytes."""
    room = 1024 + int(bounds[-1] - bounds[0]) // 64
    while True:
        out = np.empty((room, 4), np.int64)
        n = _mark(data, bounds, _CLASSES, _FIRST, _LEADS, _LENGTHS, out)
        if n <= room:
            return out[:n]
        room = n


def _classes() -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    for bit, members in (
        (_NUMBER, b"0123456789 .-()+\xc2\xa0\xe2\x80\x90\x91\x92\x93\x94\x95"),
        (_DIGIT, b"0123456789"),
        (_MAIL, b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._%+'-@" + bytes(range(0x80, 0xC0))),
        (_MAIL, bytes(range(0xC3, 0xD5))),
        (_HEX, b"0123456789abcdefABCDEF:."),
        (_CAPITAL, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    ):
        table[list(members)] |= bit
    return table


def _by_first(leads: list[bytes]) -> NDArray[np.int32]:
    """int32 (257,): the leads that begin with byte b are numbers [b] to [b + 1]; leads are sorted."""
    return np.searchsorted(np.array([lead[0] for lead in leads]), np.arange(257)).astype(np.int32)


_NUMBER, _DIGIT, _MAIL, _HEX, _CAPITAL = 1, 2, 4, 8, 16
_CLASSES = _classes()
_LEAD_NAMES = sorted({lead for rule in RULES for lead in rule.leads})
_FIRST = _by_first(_LEAD_NAMES)
_LENGTHS = np.array([len(lead) for lead in _LEAD_NAMES], np.int32)
_LEADS = np.array([list(lead.ljust(max(_LENGTHS), b"\0")) for lead in _LEAD_NAMES], np.uint8)
_BY_LEAD = [[], *([n for n, rule in enumerate(RULES) if lead in rule.leads] for lead in _LEAD_NAMES)]


@cache
def _by_shape(shapes: int) -> list[int]:
    return [number for number, rule in enumerate(RULES) if rule.shape & shapes]


@kernel
def _mark(
    data: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    classes: NDArray[np.uint8],
    first: NDArray[np.int32],
    leads: NDArray[np.uint8],
    lengths: NDArray[np.int32],
    out: NDArray[np.int64],
) -> int:
    """Write the marks into `out` as far as it reaches, and give their number."""
    n = 0
    for row in range(len(bounds) - 1):
        begin, stop = bounds[row], bounds[row + 1]
        number = mail = hexa = np.int64(-1)  # where the run began that we are in, or -1
        digits = streak = longest = dots = hyphens = colons = np.int64(0)
        plus = zero = area = zeros = three = four = at = pair = False
        for i in range(begin, stop + 1):
            b = data[i] if i < stop else np.uint8(10)
            c = classes[b]
            if c & 1:
                if number < 0:
                    number = i
                    digits = streak = longest = dots = hyphens = np.int64(0)
                    plus = zero = area = zeros = three = four = False
                if c & 2:
                    if streak == 0:
                        zero = b == 48
                    elif streak == 1 and zero and b == 48:
                        zeros = True
                    digits += 1
                    streak += 1
                    longest = max(longest, streak)
                else:
                    three = three or streak == 3
                    four = four or streak == 4
                    area = area or (zero and 3 <= streak <= 4)
                    streak = np.int64(0)
                    dots += b == 46
                    hyphens += b == 45
                    plus = plus or b == 43
            elif number >= 0:
                what = 0
                if digits >= 9:
                    four = four or streak == 4
                    if longest >= 17:
                        what |= RESIDENT
                    if hyphens >= 2 and three and four:
                        what |= SOCIAL
                    if digits >= 13 and (four or longest >= 10):
                        what |= CARD
                    if zeros:
                        what |= ZEROS
                    if area:
                        what |= LANDLINE
                    if longest >= 11 or (four and digits >= 11):
                        what |= MOBILE
                    if three and four and digits >= 10:
                        what |= AMERICAN
                if dots >= 3 and digits >= 4:
                    what |= IP4
                if plus and digits >= 8:
                    what |= PLUS
                if what:
                    if n < len(out):
                        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = row, what, number - begin, i - begin
                    n += 1
                number = np.int64(-1)
            if c & 4:
                if mail < 0:
                    mail, at = i, False
                at = at or b == 64
            elif mail >= 0:
                if at:
                    if n < len(out):
                        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = row, EMAIL, mail - begin, i - begin
                    n += 1
                mail = np.int64(-1)
            if c & 8:
                if hexa < 0:
                    hexa, colons, pair = i, np.int64(0), False
                if b == 58:
                    pair = pair or (i > hexa and data[i - 1] == 58)
                    colons += 1
            elif hexa >= 0:
                if colons >= 7 or (pair and colons >= 2):
                    if n < len(out):
                        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = row, HEX, hexa - begin, i - begin
                    n += 1
                hexa = np.int64(-1)
            if (
                c & 2
                and i - begin >= 3
                and classes[data[i - 1]] & 2
                and classes[data[i - 2]] & 16
                and classes[data[i - 3]] & 16
            ):
                if n < len(out):
                    out[n, 0], out[n, 1], out[n, 2], out[n, 3] = row, IBAN, i - 3 - begin, i - 2 - begin
                n += 1
            for lead in range(first[b], first[b + 1]):
                length = lengths[lead]
                if i + length > stop:
                    continue
                same = True
                for k in range(1, length):
                    if data[i + k] != leads[lead, k]:
                        same = False
                        break
                if same:
                    if n < len(out):
                        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = row, -1 - lead, i - begin, i + length - begin
                    n += 1
    return n
