"""zip: members in the order of the archive, expanded in memory block by block, never written anywhere.

The central directory says what is inside, and what comes out is counted: sizes in headers are claims. Entries that
overlap are refused (Fifield, WOOT 2019: 42 KB that expand to 5 GB). An archive cut off before its directory is read by
its local headers as far as it goes. A member is charged its compressed bytes; headers and directory are structure.
Inside another container, a zip is held in memory, up to an eighth of limits.memory_mb: its directory is at the end.
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, BinaryIO

from sheaf.formats.piece import Context, Member, Pieces, Refused, Region
from sheaf.formats.stream import Budget, Stream

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_METHODS = {
    zipfile.ZIP_STORED: "stored",
    zipfile.ZIP_DEFLATED: "deflate",
    zipfile.ZIP_BZIP2: "bzip2",
    zipfile.ZIP_LZMA: "lzma",
}
_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, struct.error)


def parse(stream: Stream, context: Context) -> Pieces:
    file, size = _seekable(stream, context)
    stream.position = size  # what is in no member (headers, directory) is structure
    try:
        archive = zipfile.ZipFile(file)
        entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except (*_ERRORS, NotImplementedError, RecursionError) as error:
        yield from _without_directory(file, size, context, str(error))
        return
    _no_overlap(entries, archive.start_dir)
    for info in entries:
        if not info.is_dir():
            yield from _entry(archive, info, context)


def _seekable(stream: Stream, context: Context) -> tuple[BinaryIO, int]:
    if stream.file is not None:
        size = stream.file.seek(0, io.SEEK_END)
        return stream.file, size
    data = stream.read_all(context.limits.document_bytes)
    return io.BytesIO(data), len(data)


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, context: Context) -> Pieces:
    member = Member(info.filename, _content(archive, info, context), weight=info.compress_size)
    member.end = info.header_offset + _LOCAL.size + info.compress_size
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


def _without_directory(file: BinaryIO, size: int, context: Context, why: str) -> Pieces:
    """The members whose local headers can be read one after another; the rest is a region."""
    at = 0
    found = False
    cut_header = 0  # bytes of the local header of a member that is cut
    while True:
        file.seek(at)
        header = file.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
            break
        _, _, flags, method, _, _, _, packed, _, name_size, extra_size = _LOCAL.unpack(header)
        name = file.read(name_size).decode("utf-8" if flags & 0x800 else "cp437", "replace")
        data_at = at + _LOCAL.size + name_size + extra_size
        if flags & 1 or method not in (0, 8) or (method == 0 and flags & 8) or data_at > size:
            break
        present = size - data_at
        short = not flags & 8 and packed > present
        raw = _RawEntry(file, data_at, present if flags & 8 else min(packed, present), method, short, context)
        if not name.endswith("/"):
            found = True
            member = Member(name, Stream(raw.fill))
            yield member
            raw.finish()
            broken = raw.cut or short
            member.weight = min(raw.fruitful, max(raw.consumed - 1, 0)) if broken else raw.consumed
            member.rest = raw.consumed - member.weight
            member.end = data_at + raw.consumed
        if raw.cut or short:
            cut_header = data_at - at
            at = min(size, data_at + raw.consumed)
            break
        at = data_at + (raw.consumed + raw.descriptor() if flags & 8 else packed)
    if not found and at == 0:
        raise Refused("truncated" if "not a zip" in why else "corrupt", f"no central directory: {why}"[:200])
    yield Region(at, size, "truncated", "the zip ends before its directory", cut_header + max(size - at, 0))


class _RawEntry:
    """The bytes of one member found by its local header. consumed: compressed bytes used; fruitful: those up to the
    last that gave output; cut: it ends too early."""

    def __init__(self, file: BinaryIO, at: int, limit: int, method: int, short: bool, context: Context) -> None:
        self._file, self._at, self._left, self._budget = file, at, limit, context.budget
        self._codec = zlib.decompressobj(-15) if method == 8 else None
        self.consumed = self.produced = self.fruitful = 0
        self.cut, self._short = False, short

    def fill(self, n: int) -> bytes:
        while not (self._codec and self._codec.eof):
            data = self._codec.unconsumed_tail if self._codec else b""
            if not data:
                self._file.seek(self._at)
                data = self._file.read(min(self._left, 1 << 16))
                self._at += len(data)
                self._left -= len(data)
                self.consumed += len(data)
                if not data:
                    if self._codec or self._short:
                        self.cut = True
                        raise Refused("truncated", "the member ends too early")
                    return b""
            block = self._inflate(data, n)
            if block:
                self.produced += len(block)
                self.fruitful = self.consumed
                self._budget.expand(len(block), self.consumed, self.produced)
                return block
        return b""

    def finish(self) -> None:
        """Find the end of the member even if its reader stopped early."""
        if not self.cut:
            try:
                while self.fill(1 << 18):
                    pass
            except Refused:
                self.cut = True

    def descriptor(self) -> int:
        """The size of the data descriptor that follows: 12 bytes, and 4 more with its optional signature."""
        self._file.seek(self._at)
        return 16 if self._file.read(4) == b"PK\x07\x08" else 12

    def _inflate(self, data: bytes, n: int) -> bytes:
        if self._codec is None:
            return data
        try:
            block = self._codec.decompress(data, n)
        except zlib.error as error:
            self.cut = True
            raise Refused("corrupt", f"{error}"[:200]) from None
        if self._codec.eof:
            unused = len(self._codec.unused_data)
            self.consumed -= unused
            self._at -= unused
        return block
