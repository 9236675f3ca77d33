"""Texts in UTF-8 and places in bytes, gone through 64 bytes at a time where nothing happens.

What the kernels of rows (`json_kernels`, `csv_kernels`) stand on. They know the usual, and say so; the rest is judged
by the readers in Python, so what a file gives does not depend on whether they are used (tests hold them against those
readers). Imported only where `fast` says so, since numba takes 0.4 s to load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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
def _special64(typing: Any, address: Any, mark: Any, other: Any) -> Any:
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
def _high64(typing: Any, address: Any) -> Any:
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
def _copy_bytes(typing: Any, to: Any, address: Any, size: Any) -> Any:
    """memcpy, by addresses."""

    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        to, address, size = arguments
        byte = _BYTE.as_pointer()
        cgutils.raw_memcpy(build, build.inttoptr(to, byte), build.inttoptr(address, byte), size, 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), code


@intrinsic
def _first_bit(typing: Any, bits: Any) -> Any:
    """The number of the lowest bit that is set."""

    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        return build.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.uint64), code


# As kernels see them.
special64 = cast(Callable[[int, int, int], int], _special64)
high64 = cast(Callable[[int], int], _high64)
copy64 = cast(Callable[[int, int], None], _copy64)
copy_bytes = cast(Callable[[int, int, int], None], _copy_bytes)
first_bit = cast(Callable[[int], int], _first_bit)


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
                high = high64(base + i)
                if high:
                    i += first_bit(high)
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
            bits = special64(base + i, 0x0A, 0x0A)
            if bits == 0:
                i += 64
                continue
            i += first_bit(bits)
        c = data[i]
        if c < 0x20 and c != 0x0A and c != 0x09:
            return True
        i += 1
    return False


@kernel
def trimmed(text: Bytes, start: int, end: int) -> int:
    """The end of a text without blanks; -1 if it may end, or begin, with something that is not ASCII and is cut."""
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
