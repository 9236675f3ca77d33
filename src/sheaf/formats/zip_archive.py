"""zip: members in the order of the archive, expanded in memory block by block, never written anywhere.

The central directory says what is inside, and what comes out is counted: sizes in headers are claims. Entries that
overlap are refused (Fifield, WOOT 2019: 42 KB that expand to 5 GB). An archive cut off before its directory is read by
its local headers as far as it goes. A member is charged its compressed bytes; headers and directory are structure.
Inside another container, a zip is held in memory, up to an eighth of limits.memory_mb, as its directory is at the end;
a larger one is streamed by its local headers.
"""

from __future__ import annotations

import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, NoReturn

from sheaf.formats import package
from sheaf.formats.piece import Context, Member, Pieces, Refused, Region
from sheaf.formats.stream import Budget, Stream, from_file

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_METHODS = {
    zipfile.ZIP_STORED: "stored",
    zipfile.ZIP_DEFLATED: "deflate",
    zipfile.ZIP_BZIP2: "bzip2",
    zipfile.ZIP_LZMA: "lzma",
}
_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, struct.error)

_AFTER_MEMBERS = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x08")
_UNIX = 3  # who made an entry, in the directory


def parse(stream: Stream, context: Context) -> Pieces:
    file = stream.hold(context.limits.document_bytes)
    if file is None:
        yield from _by_local_headers(stream, context, "")
        return
    stream.position = file.seek(0, io.SEEK_END)  # what is in no member (headers, directory) is structure
    try:
        archive = zipfile.ZipFile(file)
        entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except (*_ERRORS, NotImplementedError, RecursionError) as error:
        file.seek(0)
        yield from _by_local_headers(from_file(file), context, str(error))
        return
    _no_overlap(entries, archive.start_dir)
    for info, place in zip(entries, package.settled(file, list(map(package.entry_of, entries))), strict=True):
        if not info.is_dir() and not _is_link(info):
            if place.header == info.header_offset:
                content = _content(archive, info, context)
            else:
                content = Stream(package.Reader(file, place, stream.position, context.budget).read)
            yield from _entry(info, place.header, content)


def _entry(info: zipfile.ZipInfo, at: int, content: Stream) -> Pieces:
    member = Member(info.filename, content, weight=info.compress_size)
    member.end = max(0, at + _LOCAL.size + info.compress_size)
    member.expected = info.file_size
    yield member
    inner = member.stream
    if inner.problem is not None and info.compress_size:
        # Where the compressed bytes went wrong nobody says: about as far as the text came.
        kept = info.compress_size * inner.position // max(info.file_size, 1)
        member.weight = min(kept, info.compress_size - 1)
        member.rest = info.compress_size - member.weight


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, context: Context) -> Stream:
    if info.flag_bits & 1:
        return _refuses("encrypted", "a password is needed")
    if info.compress_type not in _METHODS:
        return _refuses("unsupported", f"zip method {info.compress_type}")
    try:
        file = archive.open(info)
    except (*_ERRORS, NotImplementedError, RuntimeError) as error:
        return _refuses("corrupt", f"{error}"[:200])
    return Stream(_reader(file, info, context.budget))


def _reader(file: IO[bytes], info: zipfile.ZipInfo, budget: Budget) -> Callable[[int], bytes]:
    produced = 0

    def fill(n: int) -> bytes:
        nonlocal produced
        try:
            block = file.read(n)
        except EOFError:
            raise Refused("truncated", "the member ends too early") from None
        except _ERRORS as error:
            raise Refused("corrupt", f"{error}"[:200]) from None
        produced += len(block)
        budget.expand(len(block), info.compress_size, produced)
        return block

    return fill


def _refuses(reason: str, detail: str) -> Stream:
    def fill(_: int) -> bytes:
        raise Refused(reason, detail)

    return Stream(fill)


def _no_overlap(entries: list[zipfile.ZipInfo], directory: int) -> None:
    ends = [info.header_offset + _LOCAL.size + info.compress_size for info in entries]
    starts = [info.header_offset for info in entries[1:]] + [directory]
    for end, start in zip(ends, starts, strict=False):
        if end > start:
            raise Refused("bomb", "entries of the zip overlap")


def _is_link(info: zipfile.ZipInfo) -> bool:
    """A symbolic link, whose content is a path: structure."""
    return info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16)


def _by_local_headers(stream: Stream, context: Context, why: str) -> Pieces:
    """The members one after another by their local headers; the rest is a region. why: what is wrong with the
    directory, "" if it is only out of reach: then its beginning is the end of what is read."""
    found = False
    reason, detail = "truncated", "the zip ends before its directory"
    cut_header = 0  # bytes of the local header of a member that is cut
    while True:
        at = stream.position
        head = _local_head(stream)
        if head is None:
            break
        refusal = head.refusal()
        if refusal is not None and head.packed is None:
            reason, detail = refusal.reason, f"{refusal.detail}; nobody says how long {head.name[:100]} is"
            break
        stream.read(head.size)
        raw = _RawEntry(stream, head, refusal, context)
        if not head.name.endswith("/"):
            found = True
            member = Member(head.name, Stream(raw.fill))
            yield member
            raw.finish()
            member.weight = min(raw.fruitful, max(raw.consumed - 1, 0)) if raw.broken else raw.consumed
            member.rest = raw.consumed - member.weight
            member.end = stream.position
        raw.skip()
        if raw.cut:
            cut_header, at = head.size, stream.position
            break
    if not why and stream.peek(4) in _AFTER_MEMBERS:
        stream.drain()
        return
    if not found and at == 0 and why:
        stream.drain()
        raise Refused("truncated" if "not a zip" in why else "corrupt", f"no central directory: {why}"[:200])
    stream.drain()
    yield Region(at, stream.position, reason, detail, cut_header + stream.position - at)


@dataclass(frozen=True, slots=True)
class _LocalHead:
    """size: bytes of the header. packed: None if only a descriptor behind the member says. crc: likewise."""

    name: str
    size: int
    method: int
    encrypted: bool
    packed: int | None
    crc: int | None

    def refusal(self) -> Refused | None:
        if self.encrypted:
            return Refused("encrypted", "a password is needed")
        if self.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return Refused("unsupported", f"zip method {_METHODS.get(self.method, self.method)} without a directory")
        if self.method == zipfile.ZIP_STORED and self.packed is None:
            return Refused("unsupported", "a stored member of unknown length")
        return None


def _local_head(stream: Stream) -> _LocalHead | None:
    fixed = stream.peek(_LOCAL.size)
    if len(fixed) < _LOCAL.size or not fixed.startswith(b"PK\x03\x04"):
        return None
    _, _, flags, method, _, _, crc, packed, _, name_size, extra_size = _LOCAL.unpack(fixed)
    size = _LOCAL.size + name_size + extra_size
    head = stream.peek(size)
    if len(head) < size:
        return None
    name = head[_LOCAL.size : _LOCAL.size + name_size].decode("utf-8" if flags & 0x800 else "cp437", "replace")
    if packed == 0xFFFFFFFF:
        packed = _zip64_size(head[_LOCAL.size + name_size :])
    later = bool(flags & 8)
    return _LocalHead(
        name, size, method, bool(flags & 1), (packed or None) if later else packed, None if later else crc
    )


def _zip64_size(extra: bytes) -> int:
    """The compressed size in the zip64 field, which follows the other size."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1 and size >= 16:
            return int.from_bytes(extra[at + 12 : at + 20], "little")
        at += 4 + size
    return 0xFFFFFFFF


class _RawEntry:
    """The bytes of one member behind its local header. consumed: compressed bytes used; fruitful: those up to the last
    that gave output; cut: it breaks off, and nobody knows where the next begins; broken: it is not whole."""

    def __init__(self, stream: Stream, head: _LocalHead, refusal: Refused | None, context: Context) -> None:
        self._stream, self._head, self._refusal, self._budget = stream, head, refusal, context.budget
        self._left = 1 << 62 if head.packed is None else head.packed
        self._codec = zlib.decompressobj(-15) if head.method == zipfile.ZIP_DEFLATED else None
        self._crc = 0
        self.consumed = self.produced = self.fruitful = 0
        self.cut = self.broken = False

    def fill(self, n: int) -> bytes:
        if self._refusal is not None:
            raise self._refusal
        while not (self._codec and self._codec.eof):
            data = self._stream.peek(min(self._left, 1 << 16)) if self._left else b""
            block = self._inflate(data, n) if self._codec else self._take(min(n, len(data)))
            if block:
                self.produced += len(block)
                self.fruitful = self.consumed
                self._crc = zlib.crc32(block, self._crc)
                self._budget.expand(len(block), self.consumed, self.produced)
                return block
            if not data:
                if self._codec or self._left:
                    self._break("truncated", "the member ends too early")
                break
        if self._crc != self._expected_crc():
            self.broken = True
            raise Refused("corrupt", "bad checksum")
        return b""

    def finish(self) -> None:
        """Find the end of the member even if its reader stopped early."""
        if not self.broken and not self._refusal:
            try:
                while self.fill(1 << 18):
                    pass
            except Refused as refused:
                if refused.reason == "bomb":
                    raise

    def skip(self) -> None:
        """To the next header: over what is left of the member, and the descriptor, whose sizes have 4 or 8 bytes and
        which may begin with a signature."""
        if self._head.packed is not None:
            while self._left and self._take(min(self._left, 1 << 18)):
                pass
            self.cut = self.cut or self._left > 0
        if self._head.crc is None and not self.cut:
            tail = self._stream.peek(28)
            for size in (16, 12, 24, 20):
                if tail[size : size + 2] == b"PK" or len(tail) == size:
                    self._stream.read(size)
                    return
            self.cut = True

    def _expected_crc(self) -> int:
        if self._head.crc is not None:
            return self._head.crc
        tail = self._stream.peek(8)
        return int.from_bytes(tail[4:8] if tail.startswith(b"PK\x07\x08") else tail[:4], "little")

    def _take(self, n: int) -> bytes:
        block = self._stream.read(n) if n else b""
        self.consumed += len(block)
        self._left -= len(block)
        return block

    def _inflate(self, data: bytes, n: int) -> bytes:
        assert self._codec is not None
        try:
            block = self._codec.decompress(data, n)
        except zlib.error as error:
            self._take(len(data))
            self._break("corrupt", f"{error}"[:200])
        self._take(len(data) - len(self._codec.unconsumed_tail) - len(self._codec.unused_data))
        return block

    def _break(self, reason: str, detail: str) -> NoReturn:
        self.broken = True
        self.cut = self._head.packed is None or reason == "truncated"
        raise Refused(reason, detail)
