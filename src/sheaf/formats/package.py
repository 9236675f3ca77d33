"""The parts of a document that is a zip (Office Open XML, OpenDocument, EPUB): found by name, read one at a time.

The directory at the end says where the parts lie. Where it is broken or cut off, their local headers are looked for: a
part that is damaged gives what comes before the damage. Every expanded byte counts against the item's budget; entries
that overlap are refused. Names are compared without case and with "/" for "\\", as Office does.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from sheaf.formats.piece import Context, Refused
from sheaf.formats.stream import Budget, Stream, progress

BLOCK = 1 << 16
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE = b"PK\x03\x04"
_STORED, _DEFLATED = 0, 8
_DIRECTORY_ERRORS = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RecursionError),
    *(OSError, EOFError, ValueError, struct.error),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """header: where its local header begins. packed: its compressed bytes, -1 if nobody says. crc: -1 likewise."""

    name: str
    header: int
    packed: int
    method: int
    crc: int
    encrypted: bool


@dataclass(slots=True)
class Part:
    """data: what could be read; problem: why it is not all. packed: compressed bytes it took."""

    data: bytes
    problem: Refused | None
    packed: int


class Package:
    """entries: in the order of the file, folders left out. whole: the directory could be read."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises Refused("bomb") if entries overlap."""
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = [entry_of(info) for info in archive.infolist() if not info.is_dir()]
                end = archive.start_dir
            self.whole = True
        except _DIRECTORY_ERRORS:
            entries, end = list(_scan(file, self.size)), self.size
            self.whole = False
        self.entries = sorted(entries, key=lambda entry: entry.header)
        if self.whole:
            _no_overlap(self.entries, end)
            self.entries = settled(file, self.entries)
        self._by_name = {key(entry.name): entry for entry in self.entries}

    def find(self, name: str) -> Entry | None:
        return self._by_name.get(key(name))

    def under(self, folder: str) -> list[Entry]:
        """The entries below a folder, in the order of the file."""
        prefix = key(folder).rstrip("/") + "/"
        return [entry for name, entry in self._by_name.items() if name.startswith(prefix)]

    def head(self, name: str, limit: int) -> bytes:
        """The first bytes of a part, for telling types apart; b"" if there is none or it cannot be read."""
        entry = self.find(name)
        if entry is None or entry.encrypted:
            return b""
        reader = Reader(self._file, entry, self.size)
        try:
            return reader.read(limit)[:limit]
        except Refused:
            return b""

    def read(self, entry: Entry, context: Context, limit: int = 0) -> Part:
        """The whole part. limit: bytes, default context.limits.document_bytes. Raises Refused("encrypted" | "bomb")."""
        limit = limit or context.limits.document_bytes
        blocks: list[bytes] = []
        size = 0
        problem: Refused | None = None
        reader = self.open(entry, context)
        try:
            while block := reader.read(BLOCK):
                size += len(block)
                progress(len(block))
                blocks.append(block)
                if size > limit:
                    problem = Refused("record-too-large", f"more than {limit >> 20} MB in {entry.name}")
                    break
        except Refused as refused:
            if refused.reason in ("bomb", "encrypted"):
                raise
            problem = refused
        return Part(b"".join(blocks), problem, max(entry.packed, reader.taken))

    def open(self, entry: Entry, context: Context) -> Reader:
        """The part's bytes, counted against the budget."""
        return Reader(self._file, entry, self.size, context.budget)

    def stream(self, entry: Entry, context: Context) -> Stream:
        """The part as a member's stream."""
        return Stream(self.open(entry, context).read)


def open_package(stream: Stream, context: Context) -> Package:
    """The stream as a package; its position is then the end, so what is in no piece is structure."""
    file = stream.file or io.BytesIO(stream.read_all(context.limits.document_bytes))
    package = Package(file)
    stream.position = package.size
    return package


def key(name: str) -> str:
    return name.replace("\\", "/").lstrip("/").lower()


class Reader:
    """A part's bytes. taken: compressed bytes used so far; given: expanded ones."""

    def __init__(self, file: BinaryIO, entry: Entry, size: int, budget: Budget | None = None) -> None:
        self._file, self._entry, self._size, self._budget = file, entry, size, budget
        self._taken = self.given = 0
        self._at = -1
        self._left = 0
        self._crc = 0
        self._codec = zlib.decompressobj(-15) if entry.method == _DEFLATED else None
        self._ended = False

    @property
    def taken(self) -> int:
        return self._taken - (len(self._codec.unconsumed_tail) if self._codec else 0)

    def read(self, n: int) -> bytes:
        """Some bytes, b"" at the end. Raises Refused after the last good ones."""
        if self._at < 0:
            self._open()
        while not self._ended:
            block = self._inflate(n) if self._codec else self._take(n)
            if block:
                self._crc = zlib.crc32(block, self._crc)
                self.given += len(block)
                if self._budget:
                    self._budget.expand(len(block), self.taken, self.given)
                return block
            if self._ended and self._entry.crc not in (-1, self._crc):
                raise Refused("corrupt", f"bad checksum in {self._entry.name[:100]}")
        return b""

    def _open(self) -> None:
        entry = self._entry
        if entry.encrypted:
            raise Refused("encrypted", "a password is needed")
        if entry.method not in (_STORED, _DEFLATED):
            raise Refused("unsupported", f"zip method {entry.method}")
        self._file.seek(max(entry.header, 0))
        header = self._file.read(_LOCAL.size) if entry.header >= 0 else b""
        if len(header) < _LOCAL.size or not header.startswith(_SIGNATURE):
            raise Refused("corrupt", f"no header of {entry.name[:100]}")
        *_, name_size, extra_size = _LOCAL.unpack(header)
        self._at = entry.header + _LOCAL.size + name_size + extra_size
        self._left = max(0, self._size - self._at) if entry.packed < 0 else entry.packed

    def _take(self, n: int) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(min(self._left, n))
        self._at += len(data)
        self._left -= len(data)
        self._taken += len(data)
        if not data:
            self._ended = True
            if self._left:
                raise Refused("truncated", f"{self._entry.name[:100]} ends too early")
        return data

    def _inflate(self, n: int) -> bytes:
        assert self._codec is not None
        data = self._codec.unconsumed_tail or self._take(BLOCK)
        try:
            block = self._codec.decompress(data, n) if data else self._codec.flush()
        except zlib.error as error:
            self._ended = True
            raise Refused("corrupt", f"{self._entry.name[:100]}: {error}") from None
        if self._codec.eof:
            self._ended = not block
            self._taken -= len(self._codec.unused_data)
            if block:
                self._codec, self._left = None, 0
        elif not data and not block:
            raise Refused("truncated", f"{self._entry.name[:100]} ends too early")
        return block


def entry_of(info: zipfile.ZipInfo) -> Entry:
    crypt = bool(info.flag_bits & 1)
    return Entry(info.filename, info.header_offset, info.compress_size, info.compress_type, info.CRC, crypt)


def settled(file: BinaryIO, entries: list[Entry]) -> list[Entry]:
    """Where they really are. zipfile takes it that the directory, if it is not where it says, was moved together with
    all entries. Bytes lost or put in halfway move only those behind; the others are off by as much as the first is."""
    off = entries[0].header if entries else 0
    if not off:
        return entries
    return [
        replace(entry, header=entry.header - off)
        if not _begins(file, entry.header) and _begins(file, entry.header - off)
        else entry
        for entry in entries
    ]


def _begins(file: BinaryIO, at: int) -> bool:
    if at < 0:
        return False
    file.seek(at)
    return file.read(4) == _SIGNATURE


def _scan(file: BinaryIO, size: int) -> Iterator[Entry]:
    """Entries by their local headers, wherever they lie: compressed data that looks like one gives a nonsense name."""
    at = 0
    tail = b""
    while at < size:
        file.seek(at)
        block = tail + file.read(1 << 20)
        start = at - len(tail)
        found = block.find(_SIGNATURE)
        while found >= 0:
            entry = _local_entry(file, start + found)
            if entry is not None:
                yield entry
            found = block.find(_SIGNATURE, found + 4)
        at += 1 << 20
        tail = block[-3:]


def _local_entry(file: BinaryIO, at: int) -> Entry | None:
    file.seek(at)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size:
        return None
    _, version, flags, method, _, _, crc, packed, _, name_size, _ = _LOCAL.unpack(header)
    name = file.read(name_size).decode("utf-8" if flags & 0x800 else "cp437", "replace")
    if version & 0xFF > 63 or method > 99 or not name.isprintable() or not name or name.endswith("/"):
        return None
    later = bool(flags & 8)
    return Entry(name, at, -1 if later else packed, method, -1 if later else crc, bool(flags & 1))


def _no_overlap(entries: list[Entry], directory: int) -> None:
    starts = [entry.header for entry in entries[1:]] + [directory]
    for entry, start in zip(entries, starts, strict=True):
        if entry.header + _LOCAL.size + entry.packed > start:
            raise Refused("bomb", "entries of the zip overlap")
