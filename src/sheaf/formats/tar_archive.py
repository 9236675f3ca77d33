"""tar, streamed: regular files are members, one after another, never written anywhere; all else is structure.

tarfile reads the headers (ustar, GNU, pax) in its forward-only mode. Names are data. A member is charged its data
blocks of 512 bytes; headers, links, devices and the end of the archive are structure. What follows a header that is
none, or ends too early, is a region.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from typing import IO, Any, cast

from sheaf.formats.piece import Context, Member, Pieces, Refused, Region
from sheaf.formats.stream import Stream

_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, UnicodeError)


class _Raw:
    """What tarfile reads from: it counts, and it knows whether what came last was not all zeros."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, n: int) -> bytes:
        parts: list[bytes] = []
        while n > 0 and (block := self._stream.read(n)):
            parts.append(block)
            n -= len(block)
        return b"".join(parts)


def parse(stream: Stream, context: Context) -> Pieces:
    try:
        archive = tarfile.open(fileobj=cast(IO[bytes], _Raw(stream)), mode="r|", bufsize=512, errors="replace")  # noqa: SIM115
    except _ERRORS as error:
        raise Refused("corrupt", f"not a tar archive: {error}"[:200]) from None
    while True:
        try:
            info = archive.next()
        except _ERRORS as error:
            yield _rest(stream, "corrupt", f"bad header: {error}"[:200])
            return
        if info is None:
            break
        cast(Any, archive).members = []  # tarfile would remember every header
        if not info.isreg() or info.issparse():
            if info.issparse():
                yield Region(info.offset_data, info.offset_data, "unsupported", "sparse tar member", _blocks(info.size))
            continue
        yield from _member(archive, info)
    yield from _end(stream, context)


def _member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Pieces:
    file = archive.extractfile(info)
    assert file is not None
    inner = Stream(_reader(file, info.size))
    yield Member(info.name, inner, weight=_blocks(info.size))


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


def _end(stream: Stream, context: Context) -> Pieces:
    """tarfile takes a bad header for the end of the archive: only zeros may follow (blocking factor)."""
    start = stream.position
    other = False
    while block := stream.read(1 << 18):
        other = other or bool(block.strip(b"\0"))
    if other:
        yield Region(start, stream.position, "corrupt", "what follows is no tar header")


def _rest(stream: Stream, reason: str, detail: str) -> Region:
    start = stream.position
    stream.drain()
    return Region(start, stream.position, reason, detail)


def _blocks(size: int) -> int:
    return -(-size // 512) * 512
