"""Frames between the sandbox and its child: one letter, a length, and that many bytes. Never pickle.

Parent to child: G, a group of items to parse (JSON; the items' descriptors ride along, SCM_RIGHTS).
Child to parent: H, what confines it; P, an item goes on (its number, bytes read so far); R, records (Arrow IPC), each
with its stream and its weight there instead of its bytes, and without an id; Q, regions; T, the streams of the items
since the last commit, what each costs and its whole weight: from these follow the records' bytes (`charge`); I, the
items that are finished: commits what came before; D, the group is done; X, an exception in a parser, after which the
child ends. Which item it is at it says without a frame (`Begun`).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from sheaf.formats.schema import PARSED_RECORDS

HEADER = struct.Struct("<cQ")
PROGRESS = struct.Struct("<IQ")  # number of an item, bytes of it that are read
RECORDS = pa.schema(
    [
        *(field for field in PARSED_RECORDS if field.name not in ("id", "bytes")),
        pa.field("stream", pa.int32()),  # row in the STREAMS of the same commit
        pa.field("weight", pa.int64()),
    ]
)
STREAMS = pa.schema([pa.field("item", pa.int32()), pa.field("cost", pa.int64()), pa.field("whole", pa.int64())])
EXIT_MEMORY = 77  # after MemoryError nothing can be relied on, not even sending a frame
MAX_DESCRIPTORS = 250  # the kernel takes 253 in one message


class Closed(Exception):
    """The other side is gone, or speaks nonsense."""


def send(sock: socket.socket, kind: bytes, *payload: bytes | pa.Buffer, fds: list[int] | None = None) -> None:
    """payload: the frame's bytes in parts; large ones go out from where they lie."""
    header = HEADER.pack(kind, sum(map(len, payload)))
    if fds:
        socket.send_fds(sock, [header], fds)
    small: list[bytes | pa.Buffer] = [] if fds else [header]
    for part in payload:
        if len(part) < 1 << 16:
            small.append(part)
        else:
            sock.sendall(b"".join(small))
            sock.sendall(part)
            small.clear()
    if small:
        sock.sendall(b"".join(small))


def receive(sock: socket.socket, limit: int, fds: int = 0) -> tuple[bytes, memoryview, list[int]]:
    """(kind, payload, descriptors). Raises Closed at the end, and for a frame longer than limit."""
    got: list[int] = []
    if fds:
        header, got, _, _ = socket.recv_fds(sock, HEADER.size, fds)
        header += bytes(_exactly(sock, HEADER.size - len(header))) if header else b""
    else:
        header = bytes(_exactly(sock, HEADER.size))
    if len(header) < HEADER.size:
        raise Closed("end of stream")
    kind, size = HEADER.unpack(header)
    if size > limit:
        raise Closed(f"a frame of {size} bytes")
    return kind, _exactly(sock, size), got


class Begun:
    """How many items the child has begun: a byte in a pipe for each. As a frame for each, which wakes the parent, it
    cost both as much as reading a small file; a pipe waits until the parent looks, and nobody can take it back."""

    def __init__(self) -> None:
        """theirs: the child's end, to be closed here once the child has it."""
        ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # it never fills: a group has few items
        self._ours, self.theirs = open(ours, "rb", buffering=0), open(theirs, "wb", buffering=0)  # noqa: SIM115
        self._count = 0

    def count(self) -> int:
        """By now; of a dead child too."""
        self._count += len(self._ours.read(1 << 16) or b"")
        return self._count

    def close(self) -> None:
        self._ours.close()


class Incoming:
    """Frames as they come, without descriptors; small ones many at a time, as each call of the kernel costs."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(1 << 16))
        self._start = self._end = 0

    def receive(self, limit: int, wait: Callable[[socket.socket], None]) -> tuple[bytes, memoryview]:
        """(kind, payload); as the function `receive`. wait: called where nothing is there yet; returns when something
        is, or raises."""
        self._fill(HEADER.size, wait)
        kind, size = HEADER.unpack_from(self._buffer, self._start)
        if size > limit:
            raise Closed(f"a frame of {size} bytes")
        self._start += HEADER.size
        if size <= len(self._buffer):
            self._fill(size, wait)
            payload = memoryview(bytes(self._buffer[self._start : self._start + size]))
            self._start += size
            return kind, payload
        view = np.empty(size, np.uint8).data
        have = self._end - self._start
        view[:have] = self._buffer[self._start : self._end]
        self._start = self._end = 0
        while have < size:
            have += self._some(view[have:], wait)
        return kind, view

    def _fill(self, size: int, wait: Callable[[socket.socket], None]) -> None:
        """Have so many bytes in the buffer, which holds them."""
        if self._start + size > len(self._buffer):
            have = self._end - self._start
            self._buffer[:have] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, have
        while self._end - self._start < size:
            self._end += self._some(self._buffer[self._end :], wait)

    def _some(self, room: memoryview, wait: Callable[[socket.socket], None]) -> int:
        try:
            n = self._sock.recv_into(room, flags=socket.MSG_DONTWAIT)
        except BlockingIOError:
            wait(self._sock)
            n = self._sock.recv_into(room)
        if n == 0:
            raise Closed("end of stream")
        return n


def _exactly(sock: socket.socket, size: int) -> memoryview:
    """The next bytes. In memory of numpy's, which the kernel gives in pages of 2 MB where it can and nobody fills with
    zeros first: a third of the time that a bytearray takes."""
    view = np.empty(size, np.uint8).data
    at = 0
    while at < size:
        n = sock.recv_into(view[at:])
        if n == 0:
            raise Closed("end of stream")
        at += n
    return view
