"""The directory of a 7z archive: which files lie in which folder (a compressed stream of one or more files), and how it
is packed. Follows 7zFormat.txt of the 7-Zip sources. Every count is checked against the bytes that are there for it, so
that a directory of a few bytes cannot claim billions of entries.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, field

from sheaf.formats.stream import Refused

_END, _HEADER, _PROPERTIES, _MORE_STREAMS, _STREAMS, _FILES = range(6)
_PACK, _UNPACK, _SUBSTREAMS, _SIZE, _CRC, _FOLDER, _UNPACK_SIZE, _COUNTS = range(6, 14)
_EMPTY_STREAM, _EMPTY_FILE, _ANTI, _NAMES = range(14, 18)
_ATTRIBUTES, ENCODED = 0x15, 0x17
_UNIX = 0x8000  # the upper half of the attributes is a Unix mode
MAX_CODERS = 32


@dataclass(frozen=True, slots=True)
class Coder:
    method: bytes
    properties: bytes
    unpacked: int
    inputs: int = 1


@dataclass(slots=True)
class Folder:
    """coders: in the order of decoding. at, packed: where its bytes lie in the archive, and how many there are.
    unpacked: bytes that come out. sizes, crcs: of its files, in order; a crc is -1 if nobody wrote it."""

    coders: list[Coder]
    at: int = 0
    packed: int = 0
    unpacked: int = 0
    crc: int = -1
    streams: int = 1
    inputs: int = 1
    sizes: list[int] = field(default_factory=list)
    crcs: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Entry:
    """folder: -1 if it has no bytes. number: of its bytes among those of the folder. link: its content is a path."""

    name: str
    folder: int = -1
    number: int = 0
    link: bool = False


@dataclass(frozen=True, slots=True)
class Directory:
    folders: list[Folder]
    entries: list[Entry]


def read_directory(data: bytes, members: int) -> Directory:
    """data: a header that is not encoded. members: how many files there may be. Raises Refused."""
    take = _Taker(data)
    if take.byte() != _HEADER:
        raise Refused("corrupt", "the directory is no 7z header")
    kind = take.number()
    if kind == _PROPERTIES:
        while take.number() != _END:
            take.bytes(take.number())
        kind = take.number()
    if kind == _MORE_STREAMS:
        read_streams(take.rest())  # raises; nothing is known to write them
        raise Refused("unsupported", "a 7z header with additional streams")
    folders: list[Folder] = []
    if kind == _STREAMS:
        folders = _streams(take)
        kind = take.number()
    return Directory(folders, _files(take, folders, members) if kind == _FILES else [])


def read_streams(data: bytes) -> list[Folder]:
    """The folders that an encoded header is in, after its first byte."""
    return _streams(_Taker(data))


class _Taker:
    """Takes the directory's fields one by one; Refused("corrupt") where there is nothing more to take."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def bytes(self, n: int) -> bytes:
        taken = self._data[self._at : self._at + n]
        if len(taken) < n:
            raise Refused("corrupt", "the 7z directory ends too early")
        self._at += n
        return taken

    def rest(self) -> bytes:
        return self._data[self._at :]

    def byte(self) -> int:
        return self.bytes(1)[0]

    def number(self) -> int:
        """The first byte's leading ones say how many bytes follow; its other bits are the highest of the number."""
        first = self.byte()
        more = next((i for i in range(8) if not first & (0x80 >> i)), 8)
        low = int.from_bytes(self.bytes(more), "little")
        return low if more == 8 else low | (first & ((0x80 >> more) - 1)) << (8 * more)

    def count(self, what: str) -> int:
        """A number of things of which each takes a byte at least, here or elsewhere in the directory."""
        count = self.number()
        if count > len(self._data) * 8:
            raise Refused("corrupt", f"the 7z directory claims {count:,} {what}")
        return count

    def bits(self, count: int) -> list[bool]:
        data = self.bytes(-(-count // 8))
        return [bool(data[i >> 3] & (0x80 >> (i & 7))) for i in range(count)]

    def some(self, count: int) -> list[bool]:
        """Which of them are defined."""
        return [True] * count if self.byte() else self.bits(count)

    def crcs(self, count: int) -> list[int]:
        return [int.from_bytes(self.bytes(4), "little") if there else -1 for there in self.some(count)]

    def expect(self, kind: int) -> None:
        if self.number() != kind:
            raise Refused("corrupt", "the 7z directory is out of order")


def _streams(take: _Taker) -> list[Folder]:
    at, packed = 32, list[int]()
    folders: list[Folder] = []
    kind = take.number()
    if kind == _PACK:
        at, packed = _packed(take)
        kind = take.number()
    if kind == _UNPACK:
        folders = _folders(take)
        kind = take.number()
    _place(folders, at, packed)
    if kind == _SUBSTREAMS:
        _substreams(take, folders)
        kind = take.number()
    else:
        for folder in folders:
            folder.sizes, folder.crcs = [folder.unpacked], [folder.crc]
    if kind != _END:
        raise Refused("corrupt", "the 7z directory is out of order")
    return folders


def _packed(take: _Taker) -> tuple[int, list[int]]:
    at = 32 + take.number()
    count = take.count("packed streams")
    sizes: list[int] = []
    while (kind := take.number()) != _END:
        if kind == _SIZE:
            sizes = [take.number() for _ in range(count)]
        elif kind == _CRC:
            take.crcs(count)
        else:
            raise Refused("corrupt", "the 7z directory is out of order")
    return at, sizes


def _place(folders: list[Folder], at: int, packed: list[int]) -> None:
    """Where each folder's packed bytes lie: one after another."""
    next_stream = 0
    for folder in folders:
        own = packed[next_stream : next_stream + folder.inputs]
        if len(own) < folder.inputs:
            raise Refused("corrupt", "the 7z directory names more packed streams than there are")
        folder.at, folder.packed = at, sum(own)
        at += folder.packed
        next_stream += folder.inputs


def _folders(take: _Taker) -> list[Folder]:
    take.expect(_FOLDER)
    count = take.count("folders")
    if take.byte():
        raise Refused("unsupported", "a 7z directory in another stream")
    plans = [_plan(take) for _ in range(count)]
    take.expect(_UNPACK_SIZE)
    folders = [_folder(plan, [take.number() for _ in range(plan.outputs)]) for plan in plans]
    while (kind := take.number()) != _END:
        if kind != _CRC:
            raise Refused("corrupt", "the 7z directory is out of order")
        for folder, crc in zip(folders, take.crcs(count), strict=True):
            folder.crc = crc
    return folders


@dataclass(frozen=True, slots=True)
class _Plan:
    """methods: (id, properties, inputs) of each coder. binds: from a coder's input to the output it comes from."""

    methods: list[tuple[bytes, bytes, int]]
    binds: dict[int, int]
    outputs: int
    packed: int


def _plan(take: _Taker) -> _Plan:
    methods: list[tuple[bytes, bytes, int]] = []
    inputs = outputs = 0
    coders = take.number()
    if not 1 <= coders <= MAX_CODERS:
        raise Refused("corrupt", f"a 7z folder of {coders:,} coders")
    for _ in range(coders):
        flags = take.byte()
        method = take.bytes(flags & 15)
        ins, outs = (take.number(), take.number()) if flags & 16 else (1, 1)
        if not 1 <= ins <= MAX_CODERS or outs != 1:
            raise Refused("unsupported", "a 7z coder with several outputs")
        methods.append((method, take.bytes(take.number()) if flags & 32 else b"", ins))
        inputs, outputs = inputs + ins, outputs + outs
    binds = {take.number(): take.number() for _ in range(outputs - 1)}
    packed = inputs - len(binds)
    if packed > 1:
        for _ in range(packed):
            take.number()
    return _Plan(methods, binds, outputs, packed)


def _folder(plan: _Plan, sizes: list[int]) -> Folder:
    """The coders from the packed bytes to the output that no other coder takes."""
    final = set(range(plan.outputs)) - set(plan.binds.values())
    if len(final) != 1:
        raise Refused("corrupt", "the coders of a 7z folder form no chain")
    at = final.pop()
    unpacked = sizes[at]
    firsts = [sum(ins for _, _, ins in plan.methods[:i]) for i in range(plan.outputs)]  # the first input of each coder
    chain: list[Coder] = []
    while True:
        method, properties, ins = plan.methods[at]
        chain.append(Coder(method, properties, sizes[at], ins))
        following = plan.binds.get(firsts[at])
        if following is None:
            break
        if len(chain) > plan.outputs or following >= plan.outputs:
            raise Refused("corrupt", "the coders of a 7z folder form no chain")
        at = following
    return Folder(chain[::-1], unpacked=unpacked, inputs=plan.packed)


def _substreams(take: _Taker, folders: list[Folder]) -> None:
    kind = take.number()
    if kind == _COUNTS:
        for folder in folders:
            folder.streams = take.count("files")
        kind = take.number()
    for folder in folders:
        if kind == _SIZE or folder.streams <= 1:
            given = [take.number() for _ in range(folder.streams - 1)]
            folder.sizes = [*given, folder.unpacked - sum(given)][: folder.streams]
        if len(folder.sizes) != folder.streams or any(size < 0 for size in folder.sizes):
            raise Refused("corrupt", "the files of a 7z folder are larger than the folder")
        folder.crcs = [folder.crc] if folder.streams == 1 else [-1] * folder.streams
    if kind == _SIZE:
        kind = take.number()
    while kind != _END:
        if kind != _CRC:
            raise Refused("corrupt", "the 7z directory is out of order")
        unknown = [(f, i) for f in folders for i in range(f.streams) if f.crcs[i] < 0]
        for (folder, i), crc in zip(unknown, take.crcs(len(unknown)), strict=True):
            folder.crcs[i] = crc
        kind = take.number()


def _files(take: _Taker, folders: list[Folder], members: int) -> list[Entry]:
    count = take.count("files")
    if count > members:
        raise Refused("bomb", f"more than {members} members")
    names = [""] * count
    empty, attributes = [False] * count, [0] * count
    empty_files = anti = b""
    while (kind := take.number()) != _END:
        data = take.bytes(take.number())
        if kind == _EMPTY_STREAM:
            empty = _Taker(data).bits(count)
        elif kind == _EMPTY_FILE:
            empty_files = data
        elif kind == _ANTI:
            anti = data
        elif kind == _NAMES:
            names = _names(data, count)
        elif kind == _ATTRIBUTES:
            attributes = _attributes(data, count)
    return _entries(names, empty, empty_files, anti, attributes, folders)


def _entries(
    names: list[str], empty: list[bool], empty_files: bytes, anti: bytes, attributes: list[int], folders: list[Folder]
) -> list[Entry]:
    """Files in order take the folders' bytes in order; folders of the file system and "anti" items are left out."""
    places = ((f, i) for f, folder in enumerate(folders) for i in range(folder.streams))
    files = _Taker(empty_files).bits(sum(empty)) if empty_files else [False] * sum(empty)
    deleted = _Taker(anti).bits(sum(empty)) if anti else [False] * sum(empty)
    entries: list[Entry] = []
    without = 0
    for name, is_empty, attribute in zip(names, empty, attributes, strict=True):
        if is_empty:
            if files[without] and not deleted[without]:
                entries.append(Entry(name))
            without += 1
            continue
        place = next(places, None)
        if place is None:
            raise Refused("corrupt", "the 7z directory names more files than there are bytes for")
        link = bool(attribute & _UNIX) and stat.S_ISLNK(attribute >> 16)
        entries.append(Entry(name, *place, link))
    return entries


def _names(data: bytes, count: int) -> list[str]:
    if data[:1] != b"\0":
        raise Refused("unsupported", "7z names in another stream")
    names = data[1:].decode("utf-16-le", "replace").split("\0")
    if len(names) <= count:
        raise Refused("corrupt", "the 7z directory lacks names")
    return names[:count]


def _attributes(data: bytes, count: int) -> list[int]:
    take = _Taker(data)
    there = take.some(count)
    if take.byte():
        raise Refused("unsupported", "7z attributes in another stream")
    return [struct.unpack("<I", take.bytes(4))[0] if has else 0 for has in there]
