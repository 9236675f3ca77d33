"""gzip, bzip2, xz and zstd: one member, streamed, with every expanded byte counted against the item's budget.

Several streams one after another are one member, as in the command-line tools; zero padding after them is structure,
anything else is a region. Behind a contradiction the next stream is looked for, and read as a member of its own.
Memory: one block in, one block out (bzip2, xz and gzip bound their output; zstd is fed 1 KB at a time, which can expand
to 32 MB at most before the budget is asked).
"""

from __future__ import annotations

import bz2
import lzma
import re
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import brotli
import zstandard
from isal import isal_zlib

from sheaf.formats.peek import BZIP2, ZSTD
from sheaf.formats.piece import Context, Member, Pieces, Refused, Region
from sheaf.formats.stream import BLOCK, Budget, Stream

PROBE = 512  # bytes by which a stream is known to be one
PROBES = 1000  # places that look like the beginning of a stream and are none, before the search is given up


class Codec(Protocol):
    """One compressed stream. magics: how another one after it begins, () if none may follow. chunk: bytes to feed at a
    time. padding: what may lie between streams. feed gives about `limit` bytes at most, and raises one of `errors`."""

    magics: tuple[bytes, ...]
    chunk: int
    padding: bytes
    errors: tuple[type[Exception], ...]

    @property
    def ended(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...

    def feed(self, data: bytes, limit: int) -> bytes: ...

    def wants_input(self) -> bool: ...


class Gzip:
    """gzip, and with other window bits zlib (15) and raw deflate (-15), as HTTP has them: these come alone. By ISA-L,
    which takes 0.4 of zlib's time."""

    chunk = 1 << 16
    padding = b"\0"
    errors: tuple[type[Exception], ...] = (cast(type[Exception], isal_zlib.IsalError),)  # its stubs say instance

    def __init__(self, window_bits: int = 31) -> None:
        self.magics: tuple[bytes, ...] = (b"\x1f\x8b\x08",) if window_bits == 31 else ()
        self._codec = isal_zlib.decompressobj(window_bits)

    @property
    def ended(self) -> bool:
        return self._codec.eof

    @property
    def unused(self) -> bytes:
        return self._codec.unused_data

    def feed(self, data: bytes, limit: int) -> bytes:
        return self._codec.decompress(self._codec.unconsumed_tail + data, limit)

    def wants_input(self) -> bool:
        return not self._codec.unconsumed_tail


class Lzma:
    """xz and, with another codec inside, bzip2: both bound their output and say when they need input."""

    magics: tuple[bytes, ...] = (*BZIP2, b"\xfd7zXZ\x00")
    chunk = 1 << 12  # small, to know where a broken stream gave its last text: both give whole blocks
    padding = b"\0"
    errors: tuple[type[Exception], ...] = (lzma.LZMAError, OSError, EOFError, ValueError)

    def __init__(self, codec: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> None:
        self._codec = codec

    @property
    def ended(self) -> bool:
        return self._codec.eof

    @property
    def unused(self) -> bytes:
        return self._codec.unused_data

    def feed(self, data: bytes, limit: int) -> bytes:
        return self._codec.decompress(data, limit)

    def wants_input(self) -> bool:
        return self._codec.needs_input


class Zstd:
    magics: tuple[bytes, ...] = ZSTD
    chunk = 1 << 10
    padding = b""
    errors: tuple[type[Exception], ...] = (zstandard.ZstdError,)

    def __init__(self) -> None:
        self._codec = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    @property
    def ended(self) -> bool:
        return self._codec.eof

    @property
    def unused(self) -> bytes:
        return self._codec.unused_data

    def feed(self, data: bytes, limit: int) -> bytes:
        return self._codec.decompress(data)

    def wants_input(self) -> bool:
        return True


class Brotli:
    """Only inside HTTP: nothing at its beginning tells it from other bytes."""

    magics: tuple[bytes, ...] = ()
    chunk = 1 << 14
    padding = b""
    errors: tuple[type[Exception], ...] = (brotli.error,)
    unused = b""

    def __init__(self) -> None:
        self._codec = brotli.Decompressor()

    @property
    def ended(self) -> bool:
        return self._codec.is_finished()

    def feed(self, data: bytes, limit: int) -> bytes:
        return self._codec.process(data, output_buffer_limit=limit)

    def wants_input(self) -> bool:
        return self._codec.can_accept_more_data()


class Inflater:
    """The expanded bytes of `stream`. consumed: compressed bytes that went in; fruitful: those of them up to the last
    output; broken: whether the stream breaks off or contradicts itself; garbage: whether other bytes follow.
    first: bytes that were already taken from the stream."""

    def __init__(self, stream: Stream, new: Callable[[], Codec], budget: Budget, first: bytes = b"") -> None:
        self._stream, self._new, self._budget = stream, new, budget
        self._codec = new()
        self._fresh = True  # the current codec has had no input
        self._ready = b""
        self._input = first
        self._fed = b""  # what the codec was given last: the break is in there
        self.consumed, self.produced, self.fruitful = len(first), 0, 0
        self.garbage = self.broken = self.corrupt = False
        self._over = False
        self._refused: Refused | None = None

    def fill(self, n: int) -> bytes:
        if self._refused is not None:
            raise self._refused
        while not self._ready and not self._over:
            self._step()
        taken, self._ready = self._ready[:n], self._ready[n:]
        return taken

    def resume(self) -> Inflater | None:
        """The next compressed stream behind a contradiction, if one follows: a file of many (a web archive, a log that
        was appended to) loses the broken one only. What was skipped counts as consumed."""
        if not self.corrupt or not self._codec.magics:
            return None
        data, ended, probes = self._fed, False, 0
        while True:
            for at in _found(self._codec.magics, data, len(data) if ended else len(data) - PROBE):
                probes += 1
                if probes > PROBES:
                    break
                if opens(self._new, data[at : at + PROBE]):
                    self.consumed -= len(data) - at
                    return Inflater(self._stream, self._new, self._budget, data[at:])
            if ended or probes > PROBES:
                return None
            data = data[max(0, len(data) - PROBE) :]
            block = self._stream.read(BLOCK)
            self.consumed += len(block)
            data, ended = data + block, not block

    def _step(self) -> None:
        if self._codec.ended:
            self._next_stream()
            return
        if self._codec.wants_input() and not self._input:
            self._input = self._stream.read(self._codec.chunk)
            self.consumed += len(self._input)
            if not self._input:
                self._over = True
                if not self._fresh or not self.produced:
                    self.broken = True
                    raise Refused("truncated", self._where("the compressed stream ends too early"))
                return
        data, self._input = self._input, b""
        if data:
            self._fed = data[1:] if self._fresh else data
        self._fresh = self._fresh and not data
        try:
            block = self._codec.feed(data, BLOCK)
        except self._codec.errors as error:
            self._over = self.broken = self.corrupt = True
            raise Refused("corrupt", self._where(f"{type(error).__name__}: {error}"[:200])) from None
        if block:
            self.produced += len(block)
            self.fruitful = self.consumed
            self._ready = block
            try:
                self._budget.expand(len(block), self.consumed, self.produced)
            except Refused as refused:
                self._refused = refused  # a caller that tries again must not get what follows the gap
                raise

    def _where(self, what: str) -> str:
        return f"{what}, after {self.produced:,} expanded bytes"

    def _next_stream(self) -> None:
        """Another stream may follow the one that has ended; so may zero padding, or what does not belong."""
        rest = self._codec.unused
        if self._codec.padding:
            rest = rest.lstrip(self._codec.padding)
        while not rest:
            block = self._stream.read(self._codec.chunk)
            self.consumed += len(block)
            if not block:
                self._over = True
                return
            rest = block.lstrip(self._codec.padding) if self._codec.padding else block
        more = rest if len(rest) >= 16 else rest + self._stream.read(16)
        self.consumed += len(more) - len(rest)
        self._codec, self._fresh = self._new(), True
        if more.startswith(self._codec.magics):
            self._input = more
        else:
            self._over = self.garbage = True
            self.consumed -= len(more)


def opens(new: Callable[[], Codec], head: bytes) -> bool:
    """Whether a stream of this kind begins with these bytes."""
    codec = new()
    try:
        codec.feed(head, 1 << 12)
    except codec.errors:
        return False
    return bool(head)


def _found(magics: tuple[bytes, ...], data: bytes, end: int) -> Iterator[int]:
    pattern = re.compile(b"|".join(re.escape(magic) for magic in magics))
    return (found.start() for found in pattern.finditer(data) if found.start() < end)


def parse_gzip(stream: Stream, context: Context) -> Pieces:
    name = _gzip_name(stream.peek(1024)) or _stem(context.name)
    yield from _member(stream, context, name, Gzip)


def parse_bzip2(stream: Stream, context: Context) -> Pieces:
    yield from _member(stream, context, _stem(context.name), lambda: Lzma(bz2.BZ2Decompressor()))


def parse_xz(stream: Stream, context: Context) -> Pieces:
    memory = context.limits.memory_mb << 19
    yield from _member(
        stream, context, _stem(context.name), lambda: Lzma(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory))
    )


def parse_zstd(stream: Stream, context: Context) -> Pieces:
    yield from _member(stream, context, _stem(context.name), Zstd)


def _member(stream: Stream, context: Context, name: str, new: Callable[[], Codec]) -> Pieces:
    """The expanded stream; and, behind each contradiction, what follows it as a member of its own."""
    inflater: Inflater | None = Inflater(stream, new, context.budget)
    start = 0
    while inflater is not None:
        member = Member(name, Stream(inflater.fill))
        yield member
        following = inflater.resume()
        end = start + inflater.consumed
        member.weight, member.end = inflater.consumed, end
        if inflater.broken:  # the break takes what gave no text, and a byte if all did
            member.weight = min(inflater.fruitful, max(inflater.consumed - 1, 0))
            member.rest = inflater.consumed - member.weight
        if inflater.garbage:
            stream.drain()
            yield Region(end, stream.position, "corrupt", "bytes after the end of the compressed stream")
        elif following is None:
            member.rest += stream.drain()
            member.end = stream.position
        inflater, start = following, end


def _stem(name: str) -> str:
    """docs.tar.gz is docs.tar inside, and docs.tgz too."""
    base = name.rpartition("/")[2]
    stem, _, suffix = base.rpartition(".")
    suffix = suffix.lower()
    if suffix in ("tgz", "tbz2", "txz", "tzst", "taz"):
        return f"{stem}.tar"
    return stem if stem and suffix in ("gz", "bz2", "xz", "zst", "z") else base


def _gzip_name(head: bytes) -> str:
    """The file name in the header (RFC 1952, 2.3.1), its last part: it is data, never a path to open."""
    if len(head) < 12 or not head[3] & 8:
        return ""
    at = 10
    if head[3] & 4:
        at += 2 + int.from_bytes(head[10:12], "little")
    name, end, _ = head[at:].partition(b"\0")
    return name.decode("latin-1").replace("\\", "/").rpartition("/")[2] if end else ""
