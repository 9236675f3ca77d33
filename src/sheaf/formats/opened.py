"""An item's bytes as a seekable file, and their digest, which is computed of what parsers read, as they read it.

Reading an item a second time for its digest would cost as much as the first: parsers mostly read from front to back,
and what they leave out is read at the end. The digest is BLAKE3 (O'Connor et al. 2020), which takes 0.2 ns a byte where
SHA-256 and BLAKE2b take 1.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import BinaryIO, cast

from blake3 import blake3

from sheaf.formats.stream import BLOCK, Refused, progress

SMALL = 1 << 20  # bytes of an item that is read at once
PIECE = 1 << 20  # of a longer one, that are read and digested while they are in the processor's cache
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Opened:
    file: BinaryIO
    raw: _At | None  # None for a small one: data then is all of it
    data: bytes = b""

    def digest(self) -> str:
        """Of all the item's bytes, in hex; "" if they can no longer be read."""
        return self.raw.digest() if self.raw else blake3(self.data).hexdigest(DIGEST_BYTES)


def open_item(fd: int, size: int) -> Opened:
    """The descriptor's own offset is shared with the parent, and stays. Raises Refused("changed" | "unreadable")."""
    try:
        if size > SMALL:
            data, found = b"", os.fstat(fd).st_size
        else:
            data = os.pread(fd, size + 1, 0)
            found = len(data)
    except OSError as error:
        raise _unreadable(error) from None
    if found != size:
        raise Refused("changed", f"{found} bytes instead of {size}")
    if size <= SMALL:
        return Opened(io.BytesIO(data), None, data)
    raw = _At(fd, size)
    return Opened(cast(BinaryIO, io.BufferedReader(raw, BLOCK)), raw)


class _At(io.RawIOBase):
    """A descriptor read by position, up to a size: what is appended meanwhile is not part of the item."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size, self._at = fd, size, 0
        self._hash, self._hashed = blake3(), 0  # of the first so many bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] typeshed's Buffer
        wanted = max(0, min(len(buffer), PIECE, self._size - self._at))
        try:
            n = os.preadv(self._fd, [buffer[:wanted]], self._at) if wanted else 0
        except OSError as error:
            raise _unreadable(error) from None
        if self._at <= self._hashed < self._at + n:
            self._hash.update(buffer[self._hashed - self._at : n])
            self._hashed = self._at + n
        self._at += n
        return n

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, self._size)
        return self._at

    def tell(self) -> int:
        return self._at

    def digest(self) -> str:
        piece = memoryview(bytearray(PIECE))
        try:
            while self._hashed < self._size:
                self._at = self._hashed
                if not self.readinto(piece):
                    return ""  # it is shorter by now; whoever opened it sees that it has changed
                progress(0)  # a digest of many gigabytes is work that goes on
        except Refused:
            return ""
        return self._hash.hexdigest(DIGEST_BYTES)


def _unreadable(error: OSError) -> Refused:
    return Refused("unreadable", os.strerror(error.errno or 0))
