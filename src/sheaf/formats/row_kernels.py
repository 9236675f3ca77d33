"""Rows of JSON Lines and CSV, and texts in UTF-8, gone through as bytes: 64 at a time where nothing happens.

They know the usual: objects whose text is a plain member, rows of one line, text that is its own normal form. They
answer "as usual" with columns, and "not as usual" for the rest, which the readers in Python then judge; so what a file
gives does not depend on whether they are used (tests hold them against those readers). Imported only by `fast`, since
numba takes 0.4 s to load. A kernel calls kernels of its own file only (`kernel`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sheaf.kernel import kernel

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
Table = NDArray[np.uint16]
NORMAL, UNUSUAL, INVALID = 0, 1, 2
FLAG = 1 << 15  # in a table of leads: a character that NFC may change, or which may change the one before it
KEYS = 64  # members of an object, at most
REDO_META, REDO_TEXT = 1, 2
_BYTE, _I64 = ir.IntType(8), ir.IntType(64)
_VECTOR = ir.VectorType(_BYTE, 64)


def _loaded(build: Any, address: Any) -> Any:
    return build.load(build.inttoptr(address, _VECTOR.as_pointer()), align=1)


def _all_bytes(value: int) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * 64)


def _bits(build: Any, found: Any) -> Any:
    return build.bitcast(found, _I64)


@intrinsic
def _special(typing: Any, address: Any, mark: Any, other: Any) -> Any:
    """Which of the 64 bytes at an address are one of two marks, or below 0x20: a bit for each."""

    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        vector = _loaded(build, arguments[0])
        found = build.icmp_unsigned("<", vector, _all_bytes(0x20))
        for mark in arguments[1:]:
            one = build.insert_element(ir.Constant(_VECTOR, ir.Undefined), build.trunc(mark, _BYTE), ir.IntType(32)(0))
            all = build.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64))
            found = build.or_(found, build.icmp_unsigned("==", vector, all))
        return _bits(build, found)

    return types.uint64(types.intp, types.intp, types.intp), code


@intrinsic
def _high(typing: Any, address: Any) -> Any:
    """Which of the 64 bytes are not ASCII."""

    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return _bits(build, build.icmp_signed("<", _loaded(build, arguments[0]), _all_bytes(0)))

    return types.uint64(types.intp), code


@intrinsic
def _copy64(typing: Any, to: Any, address: Any) -> Any:
    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        to, address = arguments
        build.store(_loaded(build, address), build.inttoptr(to, _VECTOR.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), code


@intrinsic
def _copy(typing: Any, to: Any, address: Any, size: Any) -> Any:
    """memcpy, by addresses."""

    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        to, address, size = arguments
        byte = _BYTE.as_pointer()
        cgutils.raw_memcpy(build, build.inttoptr(to, byte), build.inttoptr(address, byte), size, 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), code


@intrinsic
def _first(typing: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set."""

    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), code


@kernel
def judge(data: Bytes, start: int, end: int, leads: Table, follows: Table) -> int:
    """Whether bytes are a text in its normal form, but for controls and blanks at its ends: NORMAL, UNUSUAL (it may not
    be), or INVALID (no UTF-8). The tables are those of `normalise`."""
    base = data.ctypes.data
    unusual = False
    kinds = 0  # of lead that the last character was
    i = start
    while i < end:
        c = int(data[i])
        if c < 0x80:
            if kinds:
                unusual |= (int(follows[c]) & kinds) != 0
                kinds = 0
            i += 1
            while i + 64 <= end:
                high = _high(base + i)
                if high:
                    i += _first(high)
                    break
                i += 64
            continue
        if c < 0xC2:
            return 2
        if c < 0xE0:
            if i + 1 >= end or data[i + 1] & 0xC0 != 0x80:
                return 2
            point = ((c & 0x1F) << 6) | (int(data[i + 1]) & 0x3F)
            i += 2
        elif c < 0xF0:
            if i + 2 >= end or data[i + 1] & 0xC0 != 0x80 or data[i + 2] & 0xC0 != 0x80:
                return 2
            point = ((c & 0x0F) << 12) | ((int(data[i + 1]) & 0x3F) << 6) | (int(data[i + 2]) & 0x3F)
            if point < 0x800 or 0xD800 <= point < 0xE000:
                return 2
            i += 3
        else:
            if c > 0xF4 or i + 3 >= end or data[i + 1] & 0xC0 != 0x80:
                return 2
            if data[i + 2] & 0xC0 != 0x80 or data[i + 3] & 0xC0 != 0x80:
                return 2
            point = ((c & 7) << 18) | ((int(data[i + 1]) & 0x3F) << 12) | ((int(data[i + 2]) & 0x3F) << 6)
            point |= int(data[i + 3]) & 0x3F
            if point < 0x10000 or point > 0x10FFFF:
                return 2
            i += 4
            # Emoji and rare Chinese characters are themselves in NFC; of the others nothing is said.
            unusual |= not (0x1F000 <= point < 0x1FB00 or 0x20000 <= point < 0x2F800)
            point = 0xD800  # follows a lead as half of it does
        unusual |= (int(follows[point]) & kinds) != 0
        kinds = int(leads[point])
        unusual |= (kinds & 0x8001) != 0
    return 1 if unusual else 0


@kernel
def has_controls(data: Bytes, start: int, end: int) -> bool:
    """Whether there is a control character that normalising would drop or change."""
    base = data.ctypes.data
    i = start
    while i < end:
        if i + 64 <= end:
            bits = _special(base + i, 0x0A, 0x0A)
            if bits == 0:
                i += 64
                continue
            i += _first(bits)
        c = data[i]
        if c < 0x20 and c != 0x0A and c != 0x09:
            return True
        i += 1
    return False


@kernel
def trimmed(text: Bytes, start: int, end: int) -> int:
    """The end of an ASCII or UTF-8 text without blanks; -1 if it may end, or begin, with something that is not ASCII and
    would be cut."""
    while end > start and (text[end - 1] == 0x20 or text[end - 1] == 0x0A or text[end - 1] == 0x09):
        end -= 1
    if end - start >= 3 and text[start] == 0xEF and text[start + 1] == 0xBB:
        return -1
    if end - start >= 2 and text[end - 2] == 0xC2 and (text[end - 1] == 0x85 or text[end - 1] == 0xA0):
        return -1
    if end - start >= 3 and text[end - 3] & 0xFC == 0xE0:
        last = int(text[end - 3]) << 16 | int(text[end - 2]) << 8 | int(text[end - 1])
        if 0xE28080 <= last <= 0xE2808A or last in (0xE19A80, 0xE280A8, 0xE280A9, 0xE280AF, 0xE2819F, 0xE38080):
            return -1
    return end


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


@kernel
def _string(data: Bytes, at: int, n: int, out: Bytes, to: int, raw: bool) -> tuple[int, int, int]:
    """A JSON string, from behind its quote: (behind its end, or -1; where the output ends; what it held: 1 not ASCII, 2
    a control character, 4 an escape that orjson writes otherwise). raw: escapes are copied, else resolved."""
    base, target = data.ctypes.data, out.ctypes.data
    held = 0
    while at < n:
        if at + 64 <= n:
            bits = _special(base + at, 0x22, 0x5C)
            high = _high(base + at)
            _copy64(target + to, base + at)
            if bits == 0:
                held |= 1 if high else 0
                at += 64
                to += 64
                continue
            k = _first(bits)
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


@kernel
def json_lines(
    data: Bytes, names: Bytes, name_ends: Places, leads: Table, follows: Table,
    text: Bytes, text_ends: Places, meta: Bytes, meta_ends: Places, ends: Places, redo: Bytes,
) -> int:  # fmt: skip
    """Lines that are objects: how many of the first are usual. names: the columns that a text may be in, the
    best first. text, meta: what they hold, one after another; redo: REDO_META where orjson must write the meta, REDO_TEXT
    where the text is to be normalised. data: valid UTF-8. text and meta: 128 bytes and 3 a row longer than data."""
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
                _copy(target + wrote, base + opening, closing + 1 - opening)
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
                    _copy(target + wrote, base + begin, at - begin)
                    wrote += at - begin
                else:
                    at, usual = _scalar(data, at, n)
                    if at < 0:
                        return row
                    again |= 0 if usual else 1
                    _copy(target + wrote, base + begin, at - begin)
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


@kernel
def csv_rows(
    data: Bytes, separator: int, wanted: int, names: Bytes, name_ends: Places, leads: Table, follows: Table,
    text: Bytes, text_ends: Places, meta: Bytes, meta_ends: Places, ends: Places, redo: Bytes,
) -> int:  # fmt: skip
    """Rows of a table, quoted line ends included: how many of the first are usual. wanted: the column of the text. names: of each
    column '"name":', as JSON has it. meta: room for twice data, and names, a row. Else as `json_lines`."""
    n, columns = len(data), len(name_ends)
    at, row, to, wrote = 0, 0, 0, 0
    base, target, name_base = data.ctypes.data, meta.ctypes.data, names.ctypes.data
    while at < n:
        first_text, high, controls = to, False, False
        meta[wrote] = 0x7B
        wrote += 1
        first_member = wrote
        column = 0
        while True:
            if column == columns:
                return row
            is_text = column == wanted
            if not is_text:
                if wrote > first_member:
                    meta[wrote] = 0x2C
                    wrote += 1
                start = name_ends[column - 1] if column else 0
                _copy(target + wrote, name_base + start, name_ends[column] - start)
                wrote += name_ends[column] - start
                meta[wrote] = 0x22
                wrote += 1
            quoted = at < n and data[at] == 0x22
            if quoted:
                at += 1
            stop = 0x22 if quoted else separator
            while True:
                if at >= n:
                    if quoted:
                        return row
                    break
                if at + 64 <= n:
                    bits = _special(base + at, stop, 0x5C)
                    seen = _high(base + at)
                    if not is_text and not quoted:
                        bits |= _special(base + at, stop, 0x22)
                    k = _first(bits) if bits else 64
                    if k:
                        if is_text:
                            _copy64(text.ctypes.data + to, base + at)
                            to += k
                            high |= (seen & ((np.uint64(1) << np.uint64(k)) - np.uint64(1))) != 0 if k < 64 else seen != 0
                        else:
                            _copy64(target + wrote, base + at)
                            wrote += k
                        at += k
                        continue
                c = int(data[at])
                if not quoted and (c == 0x0A or (c == 0x0D and at + 1 < n and data[at + 1] == 0x0A)):
                    break
                if not quoted and c == 0x0D:
                    return row
                if c == stop:
                    if not quoted:
                        break
                    at += 1
                    if at < n and data[at] == 0x22:  # two are one
                        if is_text:
                            text[to] = 0x22
                            to += 1
                        else:
                            meta[wrote] = 0x5C
                            meta[wrote + 1] = 0x22
                            wrote += 2
                        at += 1
                        continue
                    if at < n and data[at] == 0x0D and at + 1 < n and data[at + 1] == 0x0A:
                        break
                    if at < n and data[at] != separator and data[at] != 0x0A:
                        return row
                    break
                if is_text:
                    controls |= c < 0x20 and c != 0x09 and c != 0x0A
                    high |= c >= 0x80
                    text[to] = c
                    to += 1
                elif c == 0x22 or c == 0x5C:
                    meta[wrote] = 0x5C
                    meta[wrote + 1] = c
                    wrote += 2
                elif c == 0x09 or c == 0x0A or c == 0x0D:
                    meta[wrote] = 0x5C
                    meta[wrote + 1] = 0x74 if c == 0x09 else 0x6E if c == 0x0A else 0x72
                    wrote += 2
                elif c < 0x20:
                    return row
                else:
                    meta[wrote] = c
                    wrote += 1
                at += 1
            if not is_text:
                meta[wrote] = 0x22
                wrote += 1
            column += 1
            if at < n and data[at] == separator:
                at += 1
                continue
            break
        if column != columns:
            return row
        if at < n and data[at] == 0x0D:
            at += 1
        at = min(at + 1, n)
        meta[wrote] = 0x7D
        wrote += 1
        cut = trimmed(text, first_text, to)
        if cut == first_text:
            return row
        redo[row] = 0
        if controls or cut < 0 or (high and judge(text, first_text, to, leads, follows) != 0):
            redo[row] = 2
        else:
            to = cut
        text_ends[row] = to
        meta_ends[row] = wrote
        ends[row] = at
        row += 1
    return row


@kernel
def count(data: Bytes, byte: int) -> int:
    found = 0
    for i in range(len(data)):
        found += data[i] == byte
    return found


@kernel
def write_places(starts: Places, ends: Places, out: Bytes, out_ends: Places) -> int:
    """{"bytes":[start,end]} for each, one after another; how much it is. At most 51 bytes each."""
    before = b'{"bytes":['
    to = 0
    digits = np.empty(20, np.uint8)
    for row in range(len(starts)):
        for i in range(10):
            out[to + i] = before[i]
        to += 10
        for k in range(2):
            value = starts[row] if k == 0 else ends[row]
            n = 0
            while n == 0 or value:
                digits[n] = 0x30 + value % 10
                value //= 10
                n += 1
            for i in range(n):
                out[to] = digits[n - 1 - i]
                to += 1
            out[to] = 0x2C if k == 0 else 0x5D
            to += 1
        out[to] = 0x7D
        to += 1
        out_ends[row] = to
    return to


@kernel
def byte_places(data: Bytes, starts: Places, ends: Places, usual: NDArray[np.bool_]) -> None:
    """Of each text whether it is {"bytes":[from,to]}, with numbers of 1 to 18 digits."""
    before = b'{"bytes":['
    for row in range(len(starts)):
        at, n = starts[row], ends[row] - 2
        usual[row] = False
        if n - at < 13 or data[n] != 0x5D or data[n + 1] != 0x7D:
            continue
        good = True
        for i in range(10):
            good &= data[at + i] == before[i]
        at += 10
        digits = commas = 0
        for i in range(at, n):
            c = data[i]
            if c == 0x2C:
                good &= 0 < digits < 19
                commas += 1
                digits = 0
            else:
                good &= 0x30 <= c <= 0x39
                digits += 1
        usual[row] = good and commas == 1 and 0 < digits < 19


@kernel
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
