"""tar, streamed: regular files are members, one after another, never written anywhere; all else is structure.

tarfile reads the headers (ustar, GNU, pax) in its forward-only mode. Names are data. A member is charged its data
blocks of 512 bytes, as far as they are there; headers, links, devices and the end of the archive are structure. What
follows a header that is none, or ends too early, is a region.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from typing import IO, Any, cast

from sheaf.formats.piece import Context, Member, Pieces, Refused, Region
from sheaf.formats.stream import BLOCK, Stream

_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, UnicodeError, RecursionError)
_LARGEST_HEADER = 1 << 20  # of a long name or of pax fields, which tarfile reads whole
_HEADERS = (*tarfile.GNU_TYPES[:2], tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class _Info(tarfile.TarInfo):
    """A header whose claimed size cannot fill the memory."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        """Named and meant to be overridden so by tarfile."""
        if self.type in _HEADERS and self.size > _LARGEST_HEADER:
            raise tarfile.TarError(f"a header that claims {self.size:,} bytes")
        return cast(Any, super())._proc_member(tarfile_)


class _Raw:
    """What tarfile reads from, in blocks. last: the one that came last."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.last = b""

    def read(self, n: int) -> bytes:
        parts: list[bytes] = []
        while n > 0 and (block := self._stream.read(n)):
            parts.append(block)
            n -= len(block)
        block = b"".join(parts)
        self.last = block or self.last
        return block


def parse(stream: Stream, context: Context) -> Pieces:
    raw = _Raw(stream)
    try:
        archive = tarfile.open(fileobj=cast(IO[bytes], raw), mode="r|", bufsize=512, errors="replace", tarinfo=_Info)  # noqa: SIM115
    except _ERRORS as error:
        raise Refused("corrupt", f"not a tar archive: {error}"[:200]) from None
    file = cast(IO[bytes], archive.fileobj)
    while True:
        try:
            info = archive.next()
        except _ERRORS as error:
            yield _rest(stream, archive.offset, "corrupt", f"bad header: {error}"[:200])
            return
        if info is None:
            break
        cast(Any, archive).members = []  # tarfile would remember every header
        yield from _entry(archive, info, stream)
        if not _skip(file, archive.offset):  # by ourselves: tarfile would count up to any size that a header claims
            yield Region(stream.position, stream.position, "truncated", "the tar ends inside a member")
            return
    yield from _end(stream, archive.offset, raw.last)


def _entry(archive: tarfile.TarFile, info: tarfile.TarInfo, stream: Stream) -> Pieces:
    if info.issparse():
        _skip(cast(IO[bytes], archive.fileobj), archive.offset)
        packed = min(archive.offset, stream.position) - info.offset_data  # its own size is that with the holes
        yield Region(info.offset_data, info.offset_data, "unsupported", "sparse tar member", packed)
    elif info.isreg():
        yield from _member(archive, info, stream)


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo, stream: Stream) -> Pieces:
    file = cast(IO[bytes], archive.fileobj)  # extractfile would lose the last block before a break
    file.seek(info.offset_data)
    inner = Stream(_reader(file, info.size))
    member = Member(info.name, inner, weight=_blocks(info.size), expected=info.size)
    yield member
    inner.drain()  # what its reader did not want
    member.end = min(stream.position, info.offset_data + _blocks(info.size))
    present = max(member.end - info.offset_data, 0)
    cut = present < info.size
    member.weight = max(present - 1, 0) if cut else present  # the break takes a byte
    member.rest = present - member.weight


def _skip(file: IO[bytes], to: int) -> bool:
    """Whether the archive reaches that far."""
    while (left := to - file.tell()) > 0:
        if not file.read(min(left, BLOCK)):
            return False
    return True


def _reader(file: IO[bytes], size: int) -> Callable[[int], bytes]:
    left = size

    def fill(n: int) -> bytes:
        nonlocal left
        try:
            block = file.read(min(n, left))
        except _ERRORS:
            block = b""
        if not block and left:
            raise Refused("truncated", f"the archive ends {left} bytes before the end of this member")
        left -= len(block)
        return block

    return fill


def _end(stream: Stream, start: int, last: bytes) -> Pieces:
    """tarfile takes a bad header, at start, for the end of the archive: only zeros may follow (blocking factor)."""
    if stream.position <= start:
        return
    cut = stream.position - start < 512
    other = bool(last.strip(b"\0"))
    while block := stream.read(1 << 18):
        other = other or bool(block.strip(b"\0"))
    if other:
        reason = ("truncated", "the tar ends inside a header") if cut else ("corrupt", "what follows is no tar header")
        yield Region(start, stream.position, *reason)


def _rest(stream: Stream, start: int, reason: str, detail: str) -> Region:
    stream.drain()
    return Region(start, stream.position, reason, detail)


def _blocks(size: int) -> int:
    return -(-size // 512) * 512
