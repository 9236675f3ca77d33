"""gzip, bzip2, xz and zstd: one member, streamed, with every expanded byte counted against the item's budget.

Several streams one after another are one member, as in the command-line tools; zero padding after them is structure,
anything else is a region. Memory: one block in, one block out (bzip2, xz and gzip bound their output; zstd is fed 1 KB
at a time, which can expand to 32 MB at most before the budget is asked).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable

import zstandard

from sheaf.formats.piece import Context, Member, Pieces, Refused, Region
from sheaf.formats.stream import BLOCK, Budget, Stream


class _Gzip:
    magics: tuple[bytes, ...] = (b"\x1f\x8b",)
    chunk = 1 << 16
    padding = b"\0"

    def __init__(self) -> None:
        self._codec = zlib.decompressobj(31)

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


class _Lzma:
    """xz and, with another codec inside, bzip2: both bound their output and say when they need input."""

    magics: tuple[bytes, ...] = (b"BZh", b"\xfd7zXZ\x00")
    chunk = 1 << 12  # small, to know where a broken stream gave its last text: both give whole blocks
    padding = b"\0"

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


class _Zstd:
    magics: tuple[bytes, ...] = (b"\x28\xb5\x2f\xfd",)
    chunk = 1 << 10
    padding = b""

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


AnyCodec = _Gzip | _Lzma | _Zstd


class Inflater:
    """The expanded bytes of `stream`. consumed: compressed bytes that went in; fruitful: those of them up to the last
    output; broken: whether the stream breaks off or contradicts itself; garbage: whether other bytes follow."""

    def __init__(self, stream: Stream, new: Callable[[], AnyCodec], budget: Budget) -> None:
        self._stream, self._new, self._budget = stream, new, budget
        self._codec = new()
        self._fresh = True  # the current codec has had no input
        self._ready = b""
        self._input = b""
        self.consumed = self.produced = self.fruitful = 0
        self.garbage = self.broken = False
        self._over = False
        self._refused: Refused | None = None

    def fill(self, n: int) -> bytes:
        if self._refused is not None:
            raise self._refused
        while not self._ready and not self._over:
            self._step()
        taken, self._ready = self._ready[:n], self._ready[n:]
        return taken

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
                    raise Refused("truncated", "the compressed stream ends too early")
                return
        data, self._input = self._input, b""
        self._fresh = self._fresh and not data
        try:
            block = self._codec.feed(data, BLOCK)
        except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError, zstandard.ZstdError) as error:
            self._over = self.broken = True
            raise Refused("corrupt", f"{type(error).__name__}: {error}"[:200]) from None
        if block:
            self.produced += len(block)
            self.fruitful = self.consumed
            self._ready = block
            try:
                self._budget.expand(len(block), self.consumed, self.produced)
            except Refused as refused:
                self._refused = refused  # a caller that tries again must not get what follows the gap
                raise

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
        if self._starts(more):
            self._input = more
        else:
            self._over = self.garbage = True
            self.consumed -= len(more)

    def _starts(self, data: bytes) -> bool:
        return data.startswith(self._codec.magics) or (isinstance(self._codec, _Zstd) and data[1:4] == b"*M\x18")


def parse_gzip(stream: Stream, context: Context) -> Pieces:
    name = _gzip_name(stream.peek(1024)) or _stem(context.name)
    yield from _member(stream, context, name, _Gzip)


def parse_bzip2(stream: Stream, context: Context) -> Pieces:
    yield from _member(stream, context, _stem(context.name), lambda: _Lzma(bz2.BZ2Decompressor()))


def parse_xz(stream: Stream, context: Context) -> Pieces:
    memory = context.limits.memory_mb << 19
    yield from _member(
        stream, context, _stem(context.name), lambda: _Lzma(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory))
    )


def parse_zstd(stream: Stream, context: Context) -> Pieces:
    yield from _member(stream, context, _stem(context.name), _Zstd)


def _member(stream: Stream, context: Context, name: str, new: Callable[[], AnyCodec]) -> Pieces:
    inflater = Inflater(stream, new, context.budget)
    inner = Stream(inflater.fill)
    member = Member(name, inner)
    yield member
    member.weight = member.end = inflater.consumed
    if inflater.broken:  # the break takes what gave no text, and a byte if all did
        member.weight = min(inflater.fruitful, max(inflater.consumed - 1, 0))
        member.rest = inflater.consumed - member.weight
    if inflater.garbage:
        stream.drain()
        yield Region(inflater.consumed, stream.position, "corrupt", "bytes after the end of the compressed stream")
        return
    member.rest += stream.drain()
    member.end = stream.position


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
