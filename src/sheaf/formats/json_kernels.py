"""Lines of JSON: objects whose text is a plain member, and whose other members orjson would write as they are.

A string is copied 64 bytes at a time while it is looked through: some 1.5 GB/s in all, where orjson and what comes
after it take 5 µs a record. Nothing is a JSON value here that orjson does not take: nested values, and floats and
escapes that it would write otherwise, are handed to it (REDO_META).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sheaf.formats import text_kernels
from sheaf.formats.text_kernels import (
    Bytes,
    Places,
    Table,
    copy64,
    copy_bytes,
    first_bit,
    high64,
    judge,
    special64,
    trimmed,
)
from sheaf.kernel import kernel, kernel_with


@kernel
def _hex(data: Bytes, at: int, n: int) -> int:
    """The four digits of an escape; -1 if they are none."""
    if at + 4 > n:
        return -1
    value = 0
    for i in range(at, at + 4):
        c = int(data[i])
        if 0x30 <= c <= 0x39:
            c -= 0x30
        elif 0x41 <= c <= 0x46:
            c -= 0x37
        elif 0x61 <= c <= 0x66:
            c -= 0x57
        else:
            return -1
        value = value * 16 + c
    return value


@kernel_with(text_kernels)
def _string(data: Bytes, at: int, n: int, out: Bytes, to: int, raw: bool) -> tuple[int, int, int]:
    """A JSON string, from behind its quote: (behind its end, or -1; where the output ends; what it held: 1 not ASCII, 2
    a control character, 4 an escape that orjson writes otherwise). raw: escapes are copied, else resolved."""
    base, target = data.ctypes.data, out.ctypes.data
    held = 0
    while at < n:
        if at + 64 <= n:
            bits = special64(base + at, 0x22, 0x5C)
            high = high64(base + at)
            copy64(target + to, base + at)
            if bits == 0:
                held |= 1 if high else 0
                at += 64
                to += 64
                continue
            k = first_bit(bits)
            held |= 1 if high & ((np.uint64(1) << np.uint64(k)) - np.uint64(1)) else 0
            at += k
            to += k
        c = int(data[at])
        if c == 0x22:
            return at + 1, to, held
        if c < 0x20:
            return -1, to, held
        if c != 0x5C:
            held |= 1 if c >= 0x80 else 0
            out[to] = c
            at += 1
            to += 1
            continue
        if at + 1 >= n:
            return -1, to, held
        e = int(data[at + 1])
        if raw:
            if not (e == 0x22 or e == 0x5C or e == 0x6E or e == 0x74 or e == 0x72 or e == 0x62 or e == 0x66):
                if not (e == 0x2F or e == 0x75):
                    return -1, to, held
                held |= 4
            out[to] = c
            out[to + 1] = e
            at += 2
            to += 2
            continue
        at += 2
        if e == 0x22 or e == 0x5C or e == 0x2F:
            out[to] = e
            to += 1
        elif e == 0x6E:
            out[to] = 0x0A
            to += 1
        elif e == 0x74:
            out[to] = 0x09
            to += 1
        elif e == 0x72 or e == 0x62 or e == 0x66:
            out[to] = 0x0D if e == 0x72 else 0x08 if e == 0x62 else 0x0C
            held |= 2
            to += 1
        elif e == 0x75:
            point = _hex(data, at, n)
            at += 4
            if 0xD800 <= point < 0xDC00 and at + 1 < n and data[at] == 0x5C and data[at + 1] == 0x75:
                low = _hex(data, at + 2, n)
                if not 0xDC00 <= low < 0xE000:
                    return -1, to, held
                point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
                at += 6
            if point < 0 or 0xD800 <= point < 0xE000:
                return -1, to, held
            if point < 0x80:
                held |= 2 if point < 0x20 and point != 0x0A and point != 0x09 else 0
                out[to] = point
                to += 1
            else:
                held |= 1
                if point < 0x800:
                    out[to] = 0xC0 | (point >> 6)
                elif point < 0x10000:
                    out[to] = 0xE0 | (point >> 12)
                    to += 1
                    out[to] = 0x80 | ((point >> 6) & 0x3F)
                else:
                    out[to] = 0xF0 | (point >> 18)
                    out[to + 1] = 0x80 | ((point >> 12) & 0x3F)
                    to += 2
                    out[to] = 0x80 | ((point >> 6) & 0x3F)
                out[to + 1] = 0x80 | (point & 0x3F)
                to += 2
        else:
            return -1, to, held
    return -1, to, held


@kernel
def _scalar(data: Bytes, at: int, n: int) -> tuple[int, bool]:
    """A number, true, false or null: (behind it, or -1; whether orjson would write it so)."""
    start = at
    while at < n:
        c = data[at]
        if c == 0x2C or c == 0x7D or c == 0x5D or c == 0x20 or c == 0x0D or c == 0x09 or c == 0x0A:
            break
        at += 1
    size = at - start
    c = data[start]
    if size == 4 and c == 0x74 and data[start + 1] == 0x72 and data[start + 2] == 0x75 and data[start + 3] == 0x65:
        return at, True
    if size == 4 and c == 0x6E and data[start + 1] == 0x75 and data[start + 2] == 0x6C and data[start + 3] == 0x6C:
        return at, True
    if size == 5 and c == 0x66 and data[start + 1] == 0x61 and data[start + 2] == 0x6C and data[start + 3] == 0x73:
        return (at, True) if data[start + 4] == 0x65 else (-1, False)
    i = start + 1 if c == 0x2D else start
    digits = at - i
    if digits == 0:
        return -1, False
    whole = 0
    while i < at and 0x30 <= data[i] <= 0x39:
        whole += 1
        i += 1
    first = at - digits
    if whole == digits:  # not -0, which is an integer 0
        usual = whole == 1 or data[first] != 0x30
        return at, usual and digits <= 18 and not (c == 0x2D and data[first] == 0x30)
    if whole == 0 or data[i] != 0x2E or digits > 16 or (whole > 1 and data[first] == 0x30):
        return at, False
    # 15 significant digits survive a float, and are its shortest form, if there is no zero to be left out.
    small = data[first] == 0x30
    zeros = 0
    for j in range(i + 1, at):
        if not 0x30 <= data[j] <= 0x39:
            return at, False
        if small and data[j] == 0x30:
            zeros += 1
        else:
            small = False
    after = at - i - 1
    return at, after > 0 and zeros < 4 and (data[at - 1] != 0x30 or after == 1)


@kernel
def _nested(data: Bytes, at: int, n: int) -> int:
    """Behind an object or array, by its brackets alone; -1 if the line ends first."""
    depth = 0
    while at < n:
        c = data[at]
        if c == 0x22:
            at += 1
            while at < n and data[at] != 0x22:
                at += 2 if data[at] == 0x5C else 1
        elif c == 0x7B or c == 0x5B:
            depth += 1
        elif c == 0x7D or c == 0x5D:
            depth -= 1
            if depth == 0:
                return at + 1
        elif c == 0x0A:
            return -1
        at += 1
    return -1


@kernel
def _blank(data: Bytes, at: int, n: int) -> int:
    while at < n and (data[at] == 0x20 or data[at] == 0x09 or data[at] == 0x0D):
        at += 1
    return at


@kernel
def _candidate(data: Bytes, start: int, end: int, names: Bytes, name_ends: Places) -> int:
    first = 0
    for k in range(len(name_ends)):
        last = name_ends[k]
        if last - first == end - start:
            same = True
            for i in range(end - start):
                if data[start + i] != names[first + i]:
                    same = False
                    break
            if same:
                return k
        first = last
    return -1


@kernel_with(text_kernels)
def json_lines(
    data: Bytes, names: Bytes, name_ends: Places, leads: Table, follows: Table,
    text: Bytes, text_ends: Places, meta: Bytes, meta_ends: Places, ends: Places, redo: Bytes,
) -> int:  # fmt: skip
    """Lines that are objects: how many of the first are usual. names: the columns that a text may be in, the
    best first. text, meta: what they hold, one after another; redo: REDO_META where orjson must write the meta, and
    REDO_TEXT where the text is to be normalised. data: valid UTF-8. text, meta: 128 bytes and 3 a row longer."""
    n = len(data)
    keys = np.empty(64, np.uint64)
    at, row, to, wrote = 0, 0, 0, 0
    base, target = data.ctypes.data, meta.ctypes.data
    while at < n:
        at = _blank(data, at, n)
        if at >= n or data[at] != 0x7B:
            return row
        at = _blank(data, at + 1, n)
        chosen, found, first_text, members, again = -1, 0, to, 0, 0
        meta[wrote] = 0x7B
        wrote += 1
        first_member = wrote
        while True:
            if at >= n or data[at] != 0x22:
                return row
            opening = at
            hash = np.uint64(1469598103934665603)
            at += 1
            while at < n and data[at] != 0x22:
                if data[at] == 0x5C or data[at] < 0x20:
                    return row
                hash = (hash ^ np.uint64(data[at])) * np.uint64(1099511628211)
                at += 1
            if at >= n or members == 64:
                return row
            closing = at
            for k in range(members):
                if keys[k] == hash:
                    return row
            keys[members] = hash
            members += 1
            at = _blank(data, at + 1, n)
            if at >= n or data[at] != 0x3A:
                return row
            at = _blank(data, at + 1, n)
            if at >= n:
                return row
            c = data[at]
            name = _candidate(data, opening + 1, closing, names, name_ends) if c == 0x22 else -1
            if name >= 0 and chosen >= 0 and name < chosen:
                return row
            if name >= 0 and chosen < 0:
                chosen = name
                at, to, found = _string(data, at + 1, n, text, to, False)
                if at < 0:
                    return row
            else:
                if wrote > first_member:
                    meta[wrote] = 0x2C
                    wrote += 1
                copy_bytes(target + wrote, base + opening, closing + 1 - opening)
                wrote += closing + 1 - opening
                meta[wrote] = 0x3A
                wrote += 1
                begin = at
                if c == 0x22:
                    meta[wrote] = 0x22
                    at, wrote, held = _string(data, at + 1, n, meta, wrote + 1, True)
                    if at < 0:
                        return row
                    again |= held & 4
                    meta[wrote] = 0x22
                    wrote += 1
                elif c == 0x7B or c == 0x5B:
                    again = 1
                    at = _nested(data, at, n)
                    if at < 0:
                        return row
                    copy_bytes(target + wrote, base + begin, at - begin)
                    wrote += at - begin
                else:
                    at, usual = _scalar(data, at, n)
                    if at < 0:
                        return row
                    again |= 0 if usual else 1
                    copy_bytes(target + wrote, base + begin, at - begin)
                    wrote += at - begin
            at = _blank(data, at, n)
            if at >= n:
                return row
            if data[at] == 0x2C:
                at = _blank(data, at + 1, n)
                continue
            if data[at] != 0x7D:
                return row
            at = _blank(data, at + 1, n)
            break
        if at < n:
            if data[at] != 0x0A:
                return row
            at += 1
        meta[wrote] = 0x7D
        wrote += 1
        if chosen < 0:
            return row
        redo[row] = 1 if again else 0
        cut = trimmed(text, first_text, to)
        if cut == first_text:
            return row  # blank
        if found & 2 or cut < 0 or (found & 1 and judge(text, first_text, to, leads, follows) != 0):
            redo[row] |= 2
        else:
            to = cut
        text_ends[row] = to
        meta_ends[row] = wrote
        ends[row] = at
        row += 1
    return row


@kernel_with(text_kernels)
def objects(data: Bytes, starts: Places, ends: Places, scratch: Bytes, usual: NDArray[np.bool_]) -> None:
    """Of each text whether it is an object of strings, numbers, true, false and null, as `json_lines` and orjson write
    them. scratch: as long as the longest, and 128 bytes."""
    for row in range(len(starts)):
        at, n = starts[row], ends[row]
        usual[row] = False
        if n - at < 2 or data[at] != 0x7B or data[n - 1] != 0x7D:
            continue
        if n - at == 2:
            usual[row] = True
            continue
        at += 1
        good = True
        while good:
            if data[at] != 0x22:
                good = False
                break
            at, _, held = _string(data, at + 1, n, scratch, 0, True)
            if at < 0 or at >= n or data[at] != 0x3A or held & 4:
                good = False
                break
            at += 1
            if data[at] == 0x22:
                at, _, held = _string(data, at + 1, n, scratch, 0, True)
                good = at >= 0 and held & 4 == 0
            else:
                at, good = _scalar(data, at, n)
            if not good or at < 0 or at >= n:
                good = False
                break
            if data[at] == 0x7D:
                good = at == n - 1
                break
            if data[at] != 0x2C:
                good = False
                break
            at += 1
        usual[row] = good
