"""Where tracked deletions lie in a DOC file (MS-DOC 2.8.5 PlcBteChpx, 2.9.33 ChpxFkp, 2.6.1 sprmCFRMarkDel).

The formatting of characters lies in pages of 512 bytes of the stream WordDocument: runs of the text by their place in
the file, each with a list of changes (sprm), of which one says "deleted, and not yet accepted". What cannot be read
deletes nothing: then the text stays. Cost: 1 µs a run.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator

PAGE = 512
DELETED = 0x0800
_PLACE = 0x00FA  # of fcPlcfBteChpx and its length
_SIZES = (1, 1, 2, 4, 2, 2, 0, 3)  # of an operand, by the upper three bits of its code; 0: it begins with its length


class Deletions:
    """Stretches of the stream, in order and apart."""

    def __init__(self, main: bytes, table: bytes) -> None:
        at, size = struct.unpack_from("<II", main, _PLACE) if len(main) >= _PLACE + 8 else (0, 0)
        self._stretches = sorted(_found(main, table[at : at + size]))
        self._starts = [start for start, _ in self._stretches]

    def blanked(self, raw: bytes, start: int, blank: bytes) -> bytes:
        """The characters that lie from `start` on, as wide as `blank` is, with each deleted one replaced by it."""
        end, width = start + len(raw), len(blank)
        out: list[bytes] = []
        done = 0
        for number in range(max(0, bisect.bisect_right(self._starts, start) - 1), len(self._stretches)):
            first, last = self._stretches[number]
            if first >= end:
                break
            one, two = (min(max((at - start) // width * width, done), len(raw)) for at in (first, last))
            out += [raw[done:one], blank * ((two - one) // width)]
            done = max(done, one + (two - one) // width * width)
        return b"".join([*out, raw[done:]])


def _found(main: bytes, plc: bytes) -> Iterator[tuple[int, int]]:
    count = (len(plc) - 4) // 8
    for number in range(count):
        (page,) = struct.unpack_from("<I", plc, 4 * (count + 1) + 4 * number)
        at = (page & 0x3FFFFF) * PAGE
        block = main[at : at + PAGE]
        runs = block[-1] if len(block) == PAGE else PAGE
        if 5 * runs + 4 >= PAGE:
            continue
        places = struct.unpack_from(f"<{runs + 1}I", block)
        for run in range(runs):
            offset = 2 * block[4 * (runs + 1) + run]
            if offset and places[run] < places[run + 1] and _deleted(block[offset + 1 : offset + 1 + block[offset]]):
                yield places[run], places[run + 1]


def _deleted(changes: bytes) -> bool:
    at, deleted = 0, False
    while at + 3 <= len(changes):
        (code,) = struct.unpack_from("<H", changes, at)
        if code == DELETED:
            deleted = changes[at + 2] == 1
        at += 2 + (_SIZES[code >> 13] or 1 + changes[at + 2])
    return deleted
