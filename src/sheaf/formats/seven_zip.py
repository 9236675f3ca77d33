"""7z: the files of each folder one after another, expanded in memory block by block, never written anywhere.

LZMA, LZMA2, Deflate, BZip2, Zstandard, Copy, Delta and the branch filters of the standard library's liblzma; PPMd, BCJ2
and other methods are refused by name, AES as encrypted. A folder's packed bytes are charged to its files in proportion
to their sizes; directory and links are structure. Checksums are checked. A folder that breaks keeps the files before
the break. Without its directory, which is at the end, nothing in a 7z can be found: one that is cut off is refused.

liblzma offers its filters only in front of LZMA2, so a filter alone is run as one over LZMA2 chunks that are stored.
A reader of its own, because py7zr (LGPL) unpacks to disk. Memory: the dictionary, and a block of each coder.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from sheaf.formats.charge import split
from sheaf.formats.compressed import Codec, Gzip, Inflater, Lzma, Zstd
from sheaf.formats.piece import Context, Member, Pieces, Refused
from sheaf.formats.seven_zip_directory import ENCODED, Coder, Entry, Folder, read_directory, read_streams
from sheaf.formats.stream import BLOCK, Budget, Stream

_FILTERS = {
    "03": lzma.FILTER_DELTA,
    "04": lzma.FILTER_X86, "03030103": lzma.FILTER_X86,
    "05": lzma.FILTER_POWERPC, "03030205": lzma.FILTER_POWERPC,
    "06": lzma.FILTER_IA64, "03030401": lzma.FILTER_IA64,
    "07": lzma.FILTER_ARM, "03030501": lzma.FILTER_ARM,
    "08": lzma.FILTER_ARMTHUMB, "03030701": lzma.FILTER_ARMTHUMB,
    "09": lzma.FILTER_SPARC, "03030805": lzma.FILTER_SPARC,
}  # fmt: skip
_NAMES = {
    "0a": "ARM64 filter", "0b": "RISC-V filter", "0303011b": "BCJ2", "030401": "PPMd", "040109": "Deflate64",
    "04f71102": "Brotli", "04f71104": "LZ4", "04f71105": "LZS", "04f71106": "Lizard",
}  # fmt: skip
_AES = "06f10701"
_UNBOUNDED = Budget(1 << 62, float("inf"), 0)  # filters give as many bytes as they take
_HEADERS = 4  # how often a directory may be packed inside another


def parse(stream: Stream, context: Context) -> Pieces:
    file = stream.file or io.BytesIO(stream.read_all(context.limits.document_bytes))
    size = file.seek(0, io.SEEK_END)
    stream.position = size  # what is in no file (headers, directory) is structure
    directory = read_directory(_header(file, size, context), context.limits.members)
    entries: dict[int, list[Entry]] = {}
    for entry in directory.entries:
        entries.setdefault(entry.folder, []).append(entry)
    for entry in entries.get(-1, []):
        yield Member(entry.name, Stream(lambda _: b""), end=size)
    for number, folder in enumerate(directory.folders):
        yield from _members(file, size, folder, entries.get(number, []), context)


def _header(file: BinaryIO, size: int, context: Context) -> bytes:
    """The directory, unpacked. Raises Refused."""
    file.seek(0)
    start = file.read(32)
    if len(start) < 32:
        raise Refused("truncated", f"the 7z ends at byte {size}, inside its first header")
    if zlib.crc32(start[12:]) != int.from_bytes(start[8:12], "little"):
        raise Refused("corrupt", "the first header of the 7z has a bad checksum")
    at, length = 32 + int.from_bytes(start[12:20], "little"), int.from_bytes(start[20:28], "little")
    if at + length > size:
        raise Refused("truncated", f"the 7z ends at byte {size:,}, before its directory, at byte {at:,}")
    if length > context.limits.document_bytes:
        raise Refused("record-too-large", f"a directory of {length >> 20} MB")
    file.seek(at)
    data = file.read(length)
    _checked(data, int.from_bytes(start[28:32], "little"))
    for _ in range(_HEADERS):
        if not data.startswith(bytes([ENCODED])):
            return data or b"\1\0"  # an archive without files has no directory
        (folder, *_) = read_streams(data[1:]) or [Folder([])]
        unpacked = _unpacked(file, size, folder, context)
        data = unpacked.read_all(context.limits.document_bytes)
        if unpacked.problem:
            raise unpacked.problem
        _checked(data, folder.crc)
    raise Refused("bomb", "a 7z directory inside others without end")


def _checked(data: bytes, crc: int) -> None:
    if crc not in (-1, zlib.crc32(data)):
        raise Refused("corrupt", "the directory of the 7z has a bad checksum")


def _members(file: BinaryIO, size: int, folder: Folder, entries: list[Entry], context: Context) -> Iterator[Member]:
    weights = split(min(folder.packed, max(0, size - folder.at)), folder.sizes)
    unpacked = _unpacked(file, size, folder, context)
    for entry in entries:
        weight = weights[entry.number]
        content = _Content(unpacked, folder.sizes[entry.number], folder.crcs[entry.number])
        if not entry.link:
            inner = Stream(content.fill)
            size_claimed = folder.sizes[entry.number]
            yield Member(entry.name, inner, weight, end=folder.at + folder.packed, expected=size_claimed)
        content.drain()


class _Content:
    """The next `size` bytes of a folder: one file."""

    def __init__(self, unpacked: Stream, size: int, crc: int) -> None:
        self._unpacked, self._left, self._crc = unpacked, size, crc
        self._sum = 0

    def fill(self, n: int) -> bytes:
        block = self._unpacked.read(min(n, self._left)) if self._left else b""
        self._left -= len(block)
        self._sum = zlib.crc32(block, self._sum)
        if block:
            return block
        if self._left:
            raise self._unpacked.problem or Refused("truncated", f"the folder ends {self._left} bytes before this file")
        if self._crc not in (-1, self._sum):
            raise Refused("corrupt", "bad checksum")
        return b""

    def drain(self) -> None:
        """Go to its end, whatever its reader left."""
        while self._left and (block := self._unpacked.read(min(self._left, BLOCK))):
            self._left -= len(block)


def _unpacked(file: BinaryIO, size: int, folder: Folder, context: Context) -> Stream:
    """The bytes of a folder; a stream with a problem if it cannot be unpacked."""
    try:
        stream = Stream(_packed(file, folder.at, min(folder.packed, max(0, size - folder.at))))
        for coder in folder.coders:
            stream = _decoded(stream, coder, context)
    except Refused as refused:
        return _refuses(refused)
    return stream


def _packed(file: BinaryIO, at: int, left: int) -> Callable[[int], bytes]:
    def fill(n: int) -> bytes:
        nonlocal at, left
        if not left:  # where a damaged directory says it lies, no file may reach
            return b""
        file.seek(at)
        block = file.read(min(n, left))
        at, left = at + len(block), left - len(block)
        return block

    return fill


def _decoded(stream: Stream, coder: Coder, context: Context) -> Stream:
    method = coder.method.hex()
    if method == _AES:
        raise Refused("encrypted", "a password is needed")
    if method in ("", "00"):
        return stream
    if method in _FILTERS and coder.inputs == 1:
        options = replace(coder, properties=coder.properties or b"\0")
        return Stream(Inflater(Stream(_stored(stream)), _filter(_FILTERS[method], options), _UNBOUNDED).fill)
    new, first = _codec(method, coder, context)
    return Stream(Inflater(stream, new, context.budget, first).fill)


def _codec(method: str, coder: Coder, context: Context) -> tuple[Callable[[], Codec], bytes]:
    """The codec, and what it must be fed before the packed bytes."""
    memory = context.limits.memory_mb << 19
    if method == "21" and len(coder.properties) == 1 and coder.properties[0] <= 40:
        bits = coder.properties[0]
        dictionary = (1 << 32) - 1 if bits == 40 else (2 | bits & 1) << (bits // 2 + 11)
        return _raw({"id": lzma.FILTER_LZMA2, "dict_size": _fits(dictionary, memory)}), b""
    if method == "030101" and len(coder.properties) == 5:
        _fits(int.from_bytes(coder.properties[1:], "little"), memory)
        # As an .lzma file with its size in the header: raw LZMA would not know where it ends.
        return _new_lzma, coder.properties + coder.unpacked.to_bytes(8, "little")
    if method == "040108":
        return lambda: Gzip(-15), b""
    if method == "040202":
        return lambda: Lzma(bz2.BZ2Decompressor()), b""
    if method == "04f71101":
        return Zstd, b""
    raise Refused("unsupported", f"7z method {_NAMES.get(method, method)}")


def _new_lzma() -> Codec:
    return Lzma(lzma.LZMADecompressor(lzma.FORMAT_ALONE))


def _raw(*filters: dict[str, Any]) -> Callable[[], Codec]:
    return lambda: Lzma(lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters))


def _filter(id: int, coder: Coder) -> Callable[[], Codec]:
    options = {"id": id, "dist": coder.properties[0] + 1} if id == lzma.FILTER_DELTA else {"id": id}
    return _raw(options, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16})


def _fits(dictionary: int, memory: int) -> int:
    if dictionary > memory:
        raise Refused("memory", f"its dictionary of {dictionary >> 20} MB does not fit")
    return max(dictionary, 1 << 12)


def _stored(stream: Stream) -> Callable[[int], bytes]:
    """The bytes as LZMA2 chunks that are stored: a control byte, the size less one, the bytes; 0 ends them."""
    first, ended = True, False

    def fill(_: int) -> bytes:
        nonlocal first, ended
        if ended:
            return b""
        block = stream.read(1 << 16)
        if not block:
            ended = True
            if stream.problem:
                raise stream.problem
            return b"\0"
        control = b"\1" if first else b"\2"
        first = False
        return control + (len(block) - 1).to_bytes(2, "big") + block

    return fill


def _refuses(refused: Refused) -> Stream:
    def fill(_: int) -> bytes:
        raise refused

    return Stream(fill)
