"""The payload of a record of a web archive: an HTTP message without its headers, chunks and content encodings.

What a server says of its message is a claim: "chunked" that does not begin with a chunk, and an encoding that the bytes
are not in (crawlers decode and leave the header), are ignored. Everything is streamed, and every byte that comes out of
a content encoding counts against the item's budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sheaf.formats.compressed import PROBE, Brotli, Codec, Gzip, Inflater, Zstd, opens
from sheaf.formats.stream import BLOCK, Budget, Refused, Stream

HEAD = 1 << 16  # bytes that the header of a record or message may have
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_UNREAD = frozenset({"compress", "x-compress", "sdch", "exi", "pack200-gzip", "dcb", "dcz"})


class Block:
    """The next `length` bytes of a stream. left: how many of them were not taken yet."""

    def __init__(self, stream: Stream, length: int) -> None:
        self._stream, self.left = stream, length

    def peek(self, n: int) -> bytes:
        return self._stream.peek(min(n, self.left))

    def read(self, n: int) -> bytes:
        """Raises Refused("truncated") where the stream ends before the block does."""
        if not self.left:
            return b""
        block = self._stream.read(min(n, self.left))
        if not block:
            raise Refused("truncated", f"the archive ends {self.left} bytes before the end of this record")
        self.left -= len(block)
        return block

    def drain(self) -> None:
        while self.left and (block := self._stream.read(min(self.left, BLOCK))):
            self.left -= len(block)


@dataclass(frozen=True, slots=True)
class Payload:
    """broken: whether it breaks off or contradicts itself, as far as it was read. status: 0 if it is not HTTP."""

    stream: Stream
    media: str
    broken: Callable[[], bool]
    status: int = 0


def plain_payload(block: Block, media: str) -> Payload:
    stream = Stream(block.read)
    return Payload(stream, media, lambda: stream.problem is not None)


def http_payload(block: Block, budget: Budget) -> Payload:
    raw = block.peek(HEAD)
    size = end_of_fields(raw)
    if not raw.startswith(b"HTTP/") or not size:
        return plain_payload(block, "")
    fields = fields_of(raw[:size])
    block.read(size)
    layers = [Stream(_chunks(block) if "chunked" in fields.get("transfer-encoding", "").lower() else block.read)]
    names = [name.strip().lower() for name in fields.get("content-encoding", "").split(",")]
    for name in reversed(names):
        layers.append(_decoded(layers[-1], name, budget))
    status = raw[:size].split(None, 2)[1:2]
    number = int(status[0]) if status and status[0].isdigit() and len(status[0]) == 3 else 0
    media = fields.get("content-type", "")
    return Payload(layers[-1], media, lambda: any(layer.problem is not None for layer in layers), number)


def end_of_fields(raw: bytes) -> int:
    """Where the empty line after the header ends; 0 if there is none."""
    ends = [at + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if (at := raw.find(mark)) >= 0]
    return min(ends, default=0)


def fields_of(head: bytes) -> dict[str, str]:
    """The fields after the first line, by lower-case name; the first of several, and folded lines joined."""
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    fields: dict[str, str] = {}
    name = ""
    for line in text.split("\n")[1:]:
        if line[:1] in (" ", "\t") and name:
            fields[name] = f"{fields[name]} {line.strip()}"
            continue
        key, colon, value = line.partition(":")
        name = key.strip().lower() if colon else ""
        if name in fields:
            name = ""
        elif name:
            fields[name] = value.strip()
    return fields


def _chunks(block: Block) -> Callable[[int], bytes]:
    """The chunks' data (RFC 9112, 7.1); the bytes as they are if they do not begin with a chunk."""
    first = _CHUNK.match(block.peek(256))
    if first is None or int(first[1], 16) > block.left:
        return block.read
    left = 0

    def fill(n: int) -> bytes:
        nonlocal left
        if left == 0:
            left = _next_chunk(block)
            if left == 0:
                return b""
        data = block.read(min(n, left))
        left -= len(data)
        return data

    return fill


def _next_chunk(block: Block) -> int:
    """The size of the chunk that begins here; 0 at the last one."""
    blank = block.peek(2)
    if blank.startswith((b"\r\n", b"\n")):
        block.read(blank.index(b"\n") + 1)
    found = _CHUNK.match(block.peek(256))
    if found is None:
        if block.left == 0:
            return 0  # the last chunk is missing: common, and nothing is lost
        block.read(1)  # says so if the archive ends here
        raise Refused("corrupt", "a chunk of the message has no length")
    block.read(found.end())
    return int(found[1], 16)


def _decoded(stream: Stream, name: str, budget: Budget) -> Stream:
    if name in _UNREAD:
        return Stream(lambda _: _refuse(name))
    for codec in _CODECS.get(name, ()):
        if opens(codec, stream.peek(PROBE)):
            return Stream(Inflater(stream, codec, budget).fill)
    return stream


_CODECS: dict[str, tuple[Callable[[], Codec], ...]] = {
    "gzip": (Gzip,),
    "x-gzip": (Gzip,),
    "deflate": (lambda: Gzip(15), lambda: Gzip(-15)),  # RFC 9110 means zlib; some servers send it without its header
    "br": (Brotli,),
    "zstd": (Zstd,),
}


def _refuse(name: str) -> bytes:
    raise Refused("unsupported", f"content encoding {name}")
