"""Outlook messages (MS-OXMSG over OLE): the subject and the text as a record, {"part": "0"}; attachments are members.

Each property is a stream named after its tag. The body is the plain text, else the HTML, else the compressed RTF
(MS-OXRTFCP). A message attached to a message is a record of its own, {"part": "2"} for the second attachment, and its
attachments are members in turn. From, To, Subject and Date are in meta. Holds one stream at a time.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from sheaf.formats.encoding import codec_name, decode
from sheaf.formats.html import main_text
from sheaf.formats.ole import Compound, open_compound
from sheaf.formats.piece import Context, Member, Pieces, Record, Refused, Region
from sheaf.formats.rtf import plain_text
from sheaf.formats.stream import Stream, from_bytes

SUBJECT, BODY, HTML, RTF, DATE, DELIVERED = 0x0037, 0x1000, 0x1013, 0x1009, 0x0039, 0x0E06
FROM, FROM_ADDRESS, FROM_SMTP, TO, CC = 0x0C1A, 0x0C1F, 0x5D01, 0x0E04, 0x0E03
LONG_NAME, SHORT_NAME, MEDIA = 0x3707, 0x3704, 0x370E
BODY_PAGE, PAGE = 0x3FDE, 0x3FFD
_ATTACHMENT = re.compile(r"__attach_version1\.0_#[0-9a-f]{8}", re.I)
_PAGES = {
    65001: "utf-8",
    20127: "ascii",
    28591: "latin-1",
    50220: "iso2022_jp",
    936: "gbk",
    51949: "euc_kr",
    20866: "koi8_r",
}
_RTF_START = (
    rb"{\rtf1\ansi\mac\deff0\deftab720{\fonttbl;}{\f0\fnil \froman \fswiss \fmodern \fscript \fdecor "
    rb"MS Sans SerifSymbolArialTimes New RomanCourier{\colortbl\red0\green0\blue0" + b"\r\n" + rb"\par "
    rb"\pard\plain\f0\fs20\b\i\u\tab\tx"
)


def parse(stream: Stream, context: Context) -> Pieces:
    compound, size = open_compound(stream, context)
    yield from _Message(compound, (), "0", size, context).pieces()


class _Message:
    """The message in a storage of the compound file. part: its number, "0" for the outermost."""

    def __init__(self, compound: Compound, path: tuple[str, ...], part: str, size: int, context: Context) -> None:
        self._compound, self._path, self._part, self._size, self._context = compound, path, part, size, context
        self._limit = context.limits.document_bytes
        self._fixed = self._fixed_properties(path)

    def pieces(self) -> Pieces:
        meta = {
            "subject": self._string(SUBJECT),
            "from": self._sender(),
            "to": self._string(TO),
            "cc": self._string(CC),
        }
        meta["date"] = self._date()
        taken = 0
        try:
            body, taken = self._body()
        except Refused as refused:
            body = ""
            yield Region(0, self._size, refused.reason, refused.detail, 0, {"part": self._part})
        text = "\n\n".join(t for t in (meta["subject"], body.strip("\r\n")) if t.strip())
        known = {name: value for name, value in meta.items() if value} or None
        yield Record(text, 0, self._size, "utf-8", known, taken or 1, locator={"part": self._part})
        for number, folder in enumerate(self._attachments(), 1):
            yield from self._attachment((*self._path, folder), number)

    def _attachment(self, path: tuple[str, ...], number: int) -> Pieces:
        part = str(number) if self._part == "0" else f"{self._part}.{number}"
        inner = (*path, "__substg1.0_3701000D")
        if part.count(".") >= self._context.limits.depth:
            raise Refused("bomb", f"more than {self._context.limits.depth} messages inside each other")
        if self._compound.has(*inner, "__properties_version1.0"):
            yield from _Message(self._compound, inner, part, self._size, self._context).pieces()
            return
        try:
            data = self._compound.read(*path, "__substg1.0_37010102", limit=self._limit)
            if data is None:
                data = self._embedded(inner)
        except Refused as refused:
            yield Region(0, self._size, refused.reason, refused.detail, 0, {"part": part})
            return
        name = self._string(LONG_NAME, path) or self._string(SHORT_NAME, path) or f"part-{number}"
        media = self._string(MEDIA, path)
        if data:
            within = "" if self._part == "0" else f"part-{self._part}"
            yield Member(name, from_bytes(data), min(len(data), self._size), media=media, within=within)

    def _embedded(self, path: tuple[str, ...]) -> bytes:
        """The file inside an OLE object."""
        for name in ("Package", "CONTENTS"):
            data = self._compound.read(*path, name, limit=self._limit)
            if data:
                return data
        return b""

    def _attachments(self) -> list[str]:
        depth = len(self._path)
        inside = (p[depth] for p in self._compound.paths if len(p) > depth and self._same(p[:depth]))
        return sorted(dict.fromkeys(step for step in inside if _ATTACHMENT.fullmatch(step)), key=str.lower)

    def _same(self, path: tuple[str, ...]) -> bool:
        return tuple(map(str.lower, path)) == tuple(map(str.lower, self._path))

    def _body(self) -> tuple[str, int]:
        """(text, bytes it is made of)"""
        text, size = self._sized(BODY)
        if text.strip():
            return text, size
        page = self._binary(HTML)
        if page.strip():
            return main_text(decode(page, self._codec(BODY_PAGE)).text), len(page)
        html, size = self._sized(HTML)
        if html.strip():
            return main_text(html), size
        packed = self._binary(RTF)
        return (plain_text(expand_rtf(packed, self._limit)), len(packed)) if packed else ("", 0)

    def _sender(self) -> str:
        name, address = self._string(FROM), self._string(FROM_SMTP) or self._string(FROM_ADDRESS)
        address = "" if address.startswith("/") else address  # a directory name of Exchange, no address
        return f"{name} <{address}>" if name and address and name != address else name or address

    def _date(self) -> str:
        raw = self._fixed.get(DATE) or self._fixed.get(DELIVERED)
        if raw is None:
            return ""
        (ticks,) = struct.unpack("<Q", raw)
        try:
            return (datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=ticks // 10)).isoformat(
                timespec="seconds"
            )
        except OverflowError:
            return ""

    def _string(self, tag: int, path: tuple[str, ...] | None = None) -> str:
        """A short text property on one line, "" if it is not there or cannot be read."""
        try:
            return " ".join(self._sized(tag, path)[0].replace("\0", "").split())[:2000]
        except Refused:
            return ""

    def _sized(self, tag: int, path: tuple[str, ...] | None = None) -> tuple[str, int]:
        path = self._path if path is None else path
        wide = self._compound.read(*path, f"__substg1.0_{tag:04X}001F", limit=self._limit)
        if wide is not None:
            return wide.decode("utf-16-le", "replace"), len(wide)
        narrow = self._compound.read(*path, f"__substg1.0_{tag:04X}001E", limit=self._limit)
        if not narrow:
            return "", 0
        codec = self._codec(PAGE) or self._codec(BODY_PAGE)
        try:
            return (narrow.decode(codec) if codec else decode(narrow).text), len(narrow)
        except (Refused, UnicodeDecodeError, LookupError):
            return narrow.decode("cp1252", "replace"), len(narrow)

    def _binary(self, tag: int) -> bytes:
        return self._compound.read(*self._path, f"__substg1.0_{tag:04X}0102", limit=self._limit) or b""

    def _codec(self, tag: int) -> str:
        raw = self._fixed.get(tag)
        page = struct.unpack("<I", raw[:4])[0] if raw else 0
        return codec_name(_PAGES.get(page, f"cp{page}")) or ""

    def _fixed_properties(self, path: tuple[str, ...]) -> dict[int, bytes]:
        try:
            data = self._compound.read(*path, "__properties_version1.0", limit=self._limit) or b""
        except Refused:
            return {}
        start = 32 if not path else 24
        return {tag: value for tag, value in _properties(data[start:])}


def _properties(data: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(data) - 15, 16):
        yield int.from_bytes(data[at + 2 : at + 4], "little"), data[at + 8 : at + 16]


def expand_rtf(packed: bytes, limit: int) -> bytes:
    """MS-OXRTFCP: LZ77 over a ring of 4,096 bytes that starts with words RTF is full of."""
    if len(packed) < 16:
        raise Refused("truncated", "compressed RTF without a header")
    kind = packed[8:12]
    if kind == b"MELA":
        return packed[16:]
    if kind != b"LZFu":
        raise Refused("corrupt", "compressed RTF of an unknown kind")
    ring = bytearray(_RTF_START.ljust(4096, b"\0"))
    at, write = 16, len(_RTF_START)
    out = bytearray()
    while at < len(packed) and len(out) <= limit:
        control = packed[at]
        at += 1
        for bit in range(8):
            if not control >> bit & 1:
                piece = packed[at : at + 1]
                at += 1
            else:
                if at + 2 > len(packed):
                    return bytes(out)
                word = packed[at] << 8 | packed[at + 1]
                at += 2
                offset, length = word >> 4, (word & 15) + 2
                if offset == write:
                    return bytes(out)
                piece = bytearray()
                for step in range(length):  # it may overlap what it writes
                    byte = ring[(offset + step) % 4096]
                    piece.append(byte)
                    ring[(write + step) % 4096] = byte
            if isinstance(piece, bytes) and piece:
                ring[write % 4096] = piece[0]
            out += piece
            write = (write + len(piece)) % 4096
            if at >= len(packed):
                break
    return bytes(out)
