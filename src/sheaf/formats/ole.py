"""OLE compound files (MS-CFB): which document one is, and the streams in it. Over olefile (BSD).

A compound file is a small file system in a file; its root's streams say what it is. Office documents with a password
are such files too: the encrypted package lies in a stream. Objects embedded in documents come as compound files around
the embedded file (Ole10Native, Package, CONTENTS), which is then a member.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import olefile

from sheaf.formats.piece import Context, Member, Pieces, Refused
from sheaf.formats.stream import Budget, Stream, from_bytes
from sheaf.formats.zip_documents import Found

MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
DOC, XLS, PPT, MSG = (
    "application/msword",
    "application/vnd.ms-excel",
    "application/vnd.ms-powerpoint",
    "application/vnd.ms-outlook",
)
ENCRYPTED, OBJECT = "application/x-ole-encrypted", "application/x-ole-object"
_ERRORS = (
    OSError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    struct.error,
    RecursionError,
    OverflowError,
)

# (a stream or storage of the root, what it means): the first that is there decides.
_ROOTS: tuple[tuple[str, Found], ...] = (
    ("encryptedpackage", Found(ENCRYPTED, ENCRYPTED, "Office document")),
    ("\tdrmcontent", Found(ENCRYPTED, ENCRYPTED, "Office document with rights management")),
    ("__properties_version1.0", Found(MSG, MSG, "Outlook message")),
    ("powerpoint document", Found(PPT, PPT, "PowerPoint presentation")),
    ("worddocument", Found(DOC, DOC, "Word document")),
    ("wksssworkbook", Found("application/vnd.ms-works", "", "Works spreadsheet")),
    ("workbook", Found(XLS, XLS, "Excel workbook")),
    ("book", Found(XLS, XLS, "Excel workbook")),
    ("visiodocument", Found("application/vnd.visio", "", "Visio drawing")),
    ("quill", Found("application/x-mspublisher", "", "Publisher document")),
    ("props9", Found("application/vnd.ms-project", "", "Project plan")),
    ("props12", Found("application/vnd.ms-project", "", "Project plan")),
    ("props14", Found("application/vnd.ms-project", "", "Project plan")),
    ("\x05hwpsummaryinformation", Found("application/x-hwp", "", "Hangul document")),
    ("starwriterdocument", Found("application/vnd.stardivision.writer", "", "StarOffice 5 document")),
    ("starcalcdocument", Found("application/vnd.stardivision.calc", "", "StarOffice 5 spreadsheet")),
    ("stardrawdocument", Found("application/vnd.stardivision.draw", "", "StarOffice 5 drawing")),
    ("stardrawdocument3", Found("application/vnd.stardivision.draw", "", "StarOffice 5 drawing")),
    ("sfxdocumentinfo", Found("application/vnd.stardivision", "", "StarOffice 5 document")),
    ("perfectoffice_main", Found("application/vnd.corel", "", "Corel Office document")),
    ("nativecontent_main", Found("application/vnd.corel", "", "Corel Office document")),
    ("mm", Found("application/vnd.ms-works", "", "Works document")),
    ("\x01ole10native", Found(OBJECT, OBJECT, "embedded object")),
    ("package", Found(OBJECT, OBJECT, "embedded object")),
    ("contents", Found(OBJECT, OBJECT, "embedded object")),
)
_WORKS = (b"CHNKWKS", b"CHNKINK")


class Compound:
    """A compound file's streams, by path; names are compared without case."""

    def __init__(self, file: BinaryIO, size: int = 0, budget: Budget | None = None) -> None:
        """Raises Refused("corrupt")."""
        self._size, self._budget, self._given = size, budget, 0
        try:
            self._ole = olefile.OleFileIO(file)
            self.paths: list[tuple[str, ...]] = [
                tuple(path) for path in self._ole.listdir(streams=True, storages=False)
            ]
            self._by_key = {tuple(map(str.lower, path)): path for path in reversed(self.paths)}
            self.root = {path[0].lower() for path in self._ole.listdir(streams=True, storages=True)}
        except _ERRORS as error:
            raise Refused("corrupt", f"not a compound file: {error}"[:200]) from None

    def has(self, *path: str) -> bool:
        return self._find(path) is not None

    def read(self, *path: str, limit: int = 0) -> bytes | None:
        """A stream, as far as it can be read; None if it is not there. limit: bytes; more raises record-too-large."""
        found = self._find(path)
        if found is None:
            return None
        try:
            size = self._ole.get_size(list(found))
            if limit and size > limit:
                raise Refused("record-too-large", f"more than {limit >> 20} MB in {found[-1]!r}")
            data = self._ole.openstream(list(found)).read()
            self._given += len(data)
            if self._budget:
                self._budget.expand(len(data), self._size, self._given)
            return data
        except _ERRORS as error:
            raise Refused("corrupt", f"stream {found[-1]!r}: {error}"[:200]) from None

    def _find(self, path: tuple[str, ...]) -> tuple[str, ...] | None:
        return self._by_key.get(tuple(map(str.lower, path)))


def recognise(file: BinaryIO) -> Found:
    try:
        compound = Compound(file)
        for name, found in _ROOTS:
            if name in compound.root:
                contents = compound.read("CONTENTS") if name == "contents" else None
                if contents is not None and contents.startswith(_WORKS):
                    return Found("application/vnd.ms-works", "", "Works document")
                return found
    except Refused as refused:
        return Found("application/x-ole-storage", "", f"old Office document (OLE), broken: {refused.detail}")
    return Found("application/x-ole-storage", "", "old Office document (OLE)")


def open_compound(stream: Stream, context: Context) -> tuple[Compound, int]:
    """The stream as a compound file, and its size; its position is then the end."""
    file = stream.file or io.BytesIO(stream.read_all(context.limits.document_bytes))
    size = file.seek(0, io.SEEK_END)
    stream.position = size
    file.seek(0)
    return Compound(file, size, context.budget), size


def parse_encrypted(stream: Stream, context: Context) -> Pieces:
    raise Refused("encrypted", "a password is needed")


def parse_object(stream: Stream, context: Context) -> Pieces:
    """The file inside an embedded object."""
    compound, size = open_compound(stream, context)
    name, data = _embedded(compound, context.limits.document_bytes)
    yield Member(name, from_bytes(data), weight=min(len(data), size))


def _embedded(compound: Compound, limit: int) -> tuple[str, bytes]:
    native = compound.read("\x01Ole10Native", limit=limit)
    if native:
        return _native(native)
    for stream in ("Package", "CONTENTS"):
        data = compound.read(stream, limit=limit)
        if data:
            return stream.lower(), data
    raise Refused("empty", "an embedded object without content")


def _native(data: bytes) -> tuple[str, bytes]:
    """OLENativeStream (MS-OLEDS 2.3.6): usually a packager's record: label, path, temporary path, then the file."""
    body = data[4:]
    try:
        _, at = body[:2], 2
        label, at = _zero_ended(body, at)
        _, at = _zero_ended(body, at)
        at += 4
        (path_size,) = struct.unpack_from("<I", body, at)
        at += 4 + path_size
        (size,) = struct.unpack_from("<I", body, at)
        if body[:2] == b"\x02\0" and size <= len(body) - at - 4:
            return label.decode("utf-8", "replace") or "object", body[at + 4 : at + 4 + size]
    except (struct.error, ValueError):
        pass
    return "object", body


def _zero_ended(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.index(b"\0", at)
    return data[at:end], end + 1
