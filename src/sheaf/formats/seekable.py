"""A stream's bytes as a seekable file, for readers that want their footers first.

An item that is no member of anything is such a file already, of any size; a member is held in memory, up to an eighth
of limits.memory_mb. What is read counts as progress; all that no piece takes is structure.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, cast

from sheaf.formats.piece import Context
from sheaf.formats.stream import Stream, progress

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def seekable(stream: Stream, context: Context) -> tuple[BinaryIO, int]:
    """(the file at its start, its size). Raises Refused("record-too-large")."""
    if stream.file is None:
        data = stream.read_all(context.limits.document_bytes)
        return io.BytesIO(data), len(data)
    size = stream.file.seek(0, io.SEEK_END)
    stream.file.seek(0)
    stream.position = size
    return cast(BinaryIO, _Watched(stream.file)), size


class _Watched(io.RawIOBase):
    """Tells the watch of every read: the stream, which does so otherwise, is passed by."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        data = self._file.read(memoryview(buffer).nbytes)
        memoryview(buffer).cast("B")[: len(data)] = data
        progress(len(data))
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
