"""One member's bytes, read once from front to back, with look-ahead; and the budget that all members of an item share.

A stream never holds more than it was asked to look ahead or to read. A source that ends too early or contradicts itself
ends the stream, and `problem` says why: what came before is still good. A bomb is an exception: reading stops at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

BLOCK = 1 << 18
AT_MOST = 1 << 20  # bytes that are asked for at once
_told: Callable[[int], None] | None = None


def tell(told: Callable[[int], None] | None) -> None:
    """Have it called with the size of every block that any stream takes, so that somebody knows that work goes on."""
    global _told
    _told = told


def progress(more: int) -> None:
    """Say that work goes on, and that so many bytes more were read or expanded. Streams say it; a parser that reads a
    file past its stream must."""
    if _told is not None:
        _told(more)


class Refused(Exception):
    """The rest of a stream will not be read. reason: a code of `reasons`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Budget:
    """What one item may expand to, over all its members."""

    def __init__(self, expanded_bytes: int, ratio: float, members: int) -> None:
        self.expanded_bytes, self.ratio, self.members = expanded_bytes, ratio, members
        self.spent = 0
        self.opened = 0

    def expand(self, more: int, layer_in: int, layer_out: int) -> None:
        """Count `more` bytes that came out of a layer, which has taken layer_in and given layer_out bytes so far."""
        self.spent += more
        if self.spent > self.expanded_bytes:
            raise Refused("bomb", f"expands to more than {self.expanded_bytes >> 20} MB")
        if layer_out > 1 << 20 and layer_out > self.ratio * max(layer_in, 1):
            raise Refused("bomb", f"expands more than {self.ratio:g} times")

    def open_member(self) -> None:
        self.opened += 1
        if self.opened > self.members:
            raise Refused("bomb", f"more than {self.members} members")


class Stream:
    """fill(n) returns some bytes, about n, and b"" at the end. file: the same bytes as a seekable file, if any."""

    def __init__(self, fill: Callable[[int], bytes], *, file: BinaryIO | None = None) -> None:
        self._fill = fill
        self._ahead = b""
        self._ended = self._held_in_vain = False
        self.file = file
        self.position = 0  # bytes handed out
        self.problem: Refused | None = None

    def peek(self, n: int) -> bytes:
        """The next n bytes without taking them; fewer only at the end."""
        parts = [self._ahead]
        have = len(self._ahead)
        while have < n and (block := self._next(n - have)):
            parts.append(block)
            have += len(block)
        self._ahead = b"".join(parts)
        return self._ahead[:n] if have > n else self._ahead

    def read(self, n: int) -> bytes:
        """At most n bytes, b"" at the end."""
        if self._ahead:
            taken, self._ahead = self._ahead[:n], self._ahead[n:]
        else:
            taken = self._next(n)
            if len(taken) > n:
                taken, self._ahead = taken[:n], taken[n:]
        self.position += len(taken)
        return taken

    def read_all(self, limit: int) -> bytes:
        """Everything. Raises Refused("record-too-large") above limit."""
        if self.file is not None and self.position == 0 and not self._ended:
            place = self.file.tell()
            size = self.file.seek(0, io.SEEK_END)
            self.file.seek(place)
            if size <= limit:
                return self._at_once(self.file, size)
        parts: list[bytes] = []
        have = 0
        while block := self.read(BLOCK):
            have += len(block)
            if have > limit:
                raise Refused("record-too-large", f"more than {limit >> 20} MB in one piece")
            parts.append(block)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _at_once(self, file: BinaryIO, size: int) -> bytes:
        """All of the file by one read: what is put together from blocks is copied twice."""
        file.seek(0)
        data = file.read(size)
        progress(len(data) - len(self._ahead))
        self._ahead, self._ended, self.position = b"", True, len(data)
        return data

    def hold(self, limit: int) -> BinaryIO | None:
        """What is left as a seekable file, if it is at most limit bytes: it is then `file`. Before anything is read."""
        if self.file is None and self.position == 0 and not self._held_in_vain:
            held = io.BytesIO()
            while held.tell() <= limit and (block := self.read(BLOCK)):
                held.write(block)
            small = held.tell() <= limit
            held.seek(0)
            if small:
                self.file, self._fill = held, held.read
            else:
                self._fill, self._held_in_vain = _one_after_another(held, self._fill), True
            self.position, self._ended = 0, False
        return self.file

    def drain(self) -> int:
        """Take and forget the rest; how much it was."""
        start = self.position
        while self.read(BLOCK):
            pass
        return self.position - start

    def lines(self, limit: int) -> Iterator[tuple[int, int, bytes | None]]:
        """(start, end, line with its end) for each line; the line is None when it is longer than limit."""
        for start, end, block in self.blocks(limit):
            if block is None:
                yield start, end, None
            else:
                yield from lines_of(block, start, limit)

    def blocks(self, limit: int, least: int = 0) -> Iterator[tuple[int, int, bytes | None]]:
        """(start, end, whole lines) of some `least` bytes (BLOCK) at a time; None for a line that was seen to be longer
        than limit before it ended, alone."""
        tail: list[bytes] = []
        tail_size = start = 0
        while block := self._some(least or BLOCK):
            cut = block.rfind(b"\n") + 1
            first = block.find(b"\n") + 1 if tail_size else 0
            if cut and tail_size + first > limit:
                tail_size += first
                yield start, start + tail_size, None
                start += tail_size
                tail, tail_size, block, cut = [], 0, block[first:], cut - first
            if cut:
                end = start + tail_size + cut
                whole = cut == len(block) and not tail
                yield start, end, block if whole else b"".join([*tail, memoryview(block)[:cut]])
                start, block = end, block[cut:]
                tail, tail_size = [], 0
            tail_size += len(block)
            if block and tail_size <= limit:
                tail.append(block)
        if tail_size:
            yield start, start + tail_size, b"".join(tail) if tail_size <= limit else None

    def _some(self, n: int) -> bytes:
        """n bytes; fewer only at the end."""
        parts: list[bytes] = []
        while n > 0 and (block := self.read(n)):
            parts.append(block)
            n -= len(block)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next(self, n: int) -> bytes:
        if self._ended:
            return b""
        try:
            block = self._fill(min(n, AT_MOST))
        except Refused as refused:
            if refused.reason == "bomb":
                raise
            self.problem = refused
            block = b""
        self._ended = not block
        progress(len(block))
        return block


def lines_of(block: bytes, start: int, limit: int) -> Iterator[tuple[int, int, bytes | None]]:
    """The lines of a block; None for one that is longer than limit."""
    lines = block.split(b"\n")
    last = lines.pop()
    for line in lines:
        end = start + len(line) + 1
        yield start, end, line + b"\n" if len(line) < limit else None
        start = end
    if last:
        yield start, start + len(last), last if len(last) <= limit else None


def _one_after_another(held: BinaryIO, rest: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """First what was held, and let go of it."""
    first = [held]

    def fill(n: int) -> bytes:
        if first:
            block = first[0].read(n)
            if block:
                return block
            first.clear()
        return rest(n)

    return fill


def from_file(file: BinaryIO) -> Stream:
    return Stream(file.read, file=file)


def from_bytes(data: bytes) -> Stream:
    at = 0

    def fill(n: int) -> bytes:
        nonlocal at
        block = data[at : at + n]
        at += len(block)
        return block

    return Stream(fill)
