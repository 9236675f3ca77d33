"""Rows of a table, quoted fields included, as the csv module reads them where it is strict."""

from __future__ import annotations

import numpy as np

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
from sheaf.kernel import kernel_with


@kernel_with(text_kernels)
def csv_rows(
    data: Bytes, separator: int, wanted: int, names: Bytes, name_ends: Places, leads: Table, follows: Table,
    text: Bytes, text_ends: Places, meta: Bytes, meta_ends: Places, ends: Places, redo: Bytes,
) -> int:  # fmt: skip
    """Rows of a table, quoted line ends included: how many of the first are usual. wanted: the column of the text.
    names: of each column '"name":', as JSON has it. meta: room for twice data, and the names a row. Else as
    `json_lines`."""
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
                copy_bytes(target + wrote, name_base + start, name_ends[column] - start)
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
                    bits = special64(base + at, stop, 0x5C)
                    seen = high64(base + at)
                    if not is_text and not quoted:
                        bits |= special64(base + at, stop, 0x22)
                    k = first_bit(bits) if bits else 64
                    if k:
                        if is_text:
                            copy64(text.ctypes.data + to, base + at)
                            to += k
                            high |= (
                                (seen & ((np.uint64(1) << np.uint64(k)) - np.uint64(1))) != 0 if k < 64 else seen != 0
                            )
                        else:
                            copy64(target + wrote, base + at)
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
