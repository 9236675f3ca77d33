"""PDF by PDFium (BSD-3-Clause, through pypdfium2): a record a page, at {"page": n}; attached files are members.

A page's text is what it shows, in the order in which it was drawn, and after it the comments and filled fields on it.
No script runs, no form is opened, no picture is decoded, and no font of the machine is looked at: the same bytes give
the same text everywhere. What PDFium can mend of a damaged file is read. A page that shows something but holds no text
(a scan) is a region, so that the ledger says how much of a collection needs a reader of pictures; a blank page is
structure. A PDF does not say which of its bytes make a page, so pages share them evenly, and attachments, if there are
any, half of them by their size.

Cost: one parse of each page (some 2,000 pages of text a second), and a copy of the file in memory up to an eighth of
limits.memory_mb; larger files are read where they lie.
"""

from __future__ import annotations

import ctypes
import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pypdfium2_raw as pdfium  # not pypdfium2: it starts the library with the machine's fonts when it is imported

from sheaf.formats.charge import split
from sheaf.formats.piece import Context, Member, Piece, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream, from_bytes, progress

UNMAPPED = 0.2  # share of characters that no font gives a meaning, above which a page is no text
_ENCRYPTED = (4, 5)  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY
_LINK, _POPUP, _FILE, _WIDGET = 2, 16, 17, 20  # FPDF_ANNOT_*
_ANNOTATIONS = 10_000  # of one page that are looked at
_META = {"title": b"Title", "author": b"Author", "subject": b"Subject"}
_UNMAPPED = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]")  # controls, private use
_LIGATURE = re.compile("[\ufb00-\ufb06]")
_SOFT_HYPHEN = re.compile("[\ufffe\x02]\r?\n?")  # PDFium's marks of a word that goes on in the next line
Handle = Any


def parse(stream: Stream, context: Context) -> Pieces:
    document, size = _open(stream, context)
    try:
        yield from _document(document, size, context)
    finally:
        pdfium.FPDF_CloseDocument(document.handle)


@dataclass(frozen=True, slots=True)
class _Document:
    """holds: what PDFium reads from while the document is open."""

    handle: Handle
    holds: tuple[Any, ...]


def _start() -> None:
    """Start PDFium with an empty list of folders for fonts, in place of the machine's."""
    nowhere = (ctypes.POINTER(ctypes.c_char) * 1)()
    pdfium.FPDF_InitLibraryWithConfig(pdfium.FPDF_LIBRARY_CONFIG(version=2, m_pUserFontPaths=nowhere))


_start()


def _open(stream: Stream, context: Context) -> tuple[_Document, int]:
    """An empty password opens what anybody may read. Raises Refused: "encrypted", "corrupt"."""
    limit = context.limits.document_bytes
    file = stream.hold(limit)
    if file is None:
        raise Refused("record-too-large", f"a PDF of more than {limit >> 20} MB inside another file")
    size = stream.position = file.seek(0, io.SEEK_END)
    data = b""
    if size > limit:
        access = _file_access(file)
        document = _Document(pdfium.FPDF_LoadCustomDocument(access, None), (file, access))
    else:
        file.seek(0)
        data = file.read(size)
        document = _Document(pdfium.FPDF_LoadMemDocument64(data, len(data), None), (data,))
    error = 0 if document.handle else int(pdfium.FPDF_GetLastError())
    if error in _ENCRYPTED:
        raise Refused("encrypted", "a password is needed" if error == 4 else "an encryption that is not known")
    if not document.handle:
        cut = b"%%EOF" not in data[-1024:] and size <= limit
        raise Refused("truncated" if cut else "corrupt", "its list of pages cannot be found")
    return document, size


def _file_access(file: BinaryIO) -> Any:
    """PDFium's view of a seekable file: whole blocks at an offset, or nothing."""

    def get(_: Any, at: int, buffer: Any, wanted: int) -> int:
        file.seek(at)
        data = file.read(wanted)
        if len(data) != wanted:
            return 0
        ctypes.memmove(buffer, data, wanted)
        return 1

    callback: Any = dict(cast(Any, pdfium.FPDF_FILEACCESS._fields_))["m_GetBlock"]
    return pdfium.FPDF_FILEACCESS(m_FileLen=file.seek(0, io.SEEK_END), m_GetBlock=callback(get))


def _document(document: _Document, size: int, context: Context) -> Pieces:
    handle = document.handle
    count = int(pdfium.FPDF_GetPageCount(handle))
    meta = _meta(handle)
    attachments = int(pdfium.FPDFDoc_GetAttachmentCount(handle))
    shown = min(count, context.limits.pages)
    left = size - size // 2 if attachments > 0 else size
    weights = split(left, [1] * shown + ([count - shown] if count > shown else []))
    unread = _Unread()
    blank = attachments <= 0
    for number in range(1, shown + 1):
        progress(0)
        for piece in _page(handle, number, weights[number - 1], size, meta, context):
            blank = False
            if isinstance(piece, Region):
                yield from unread.add(number, piece)
            else:
                yield piece
    yield from unread.flush()
    if count > shown:
        yield Region(0, -1, "bomb", f"more than {shown:,} pages", weights[-1], {"page": [shown + 1, count]})
    if attachments > 0:
        files = (pdfium.FPDFDoc_GetAttachment(handle, i) for i in range(min(attachments, context.limits.members)))
        yield from _members(files, size // 2, size, context)
    if blank:
        raise Refused("empty", "all its pages are blank")


class _Unread:
    """Neighbouring pages that are refused for the same reason become one region."""

    def __init__(self) -> None:
        self._first = self._last = 0
        self._region: Region | None = None

    def add(self, page: int, region: Region) -> Iterator[Region]:
        same = self._region
        if same and self._last == page - 1 and (same.reason, same.detail) == (region.reason, region.detail):
            same.weight += region.weight
            self._last = page
            return
        yield from self.flush()
        self._region, self._first, self._last = region, page, page

    def flush(self) -> Iterator[Region]:
        region, self._region = self._region, None
        if region is not None:
            region.locator = {"page": self._first if self._first == self._last else [self._first, self._last]}
            yield region


def _page(
    document: Handle, number: int, weight: int, size: int, meta: dict[str, Any] | None, context: Context
) -> Iterator[Piece]:
    page = pdfium.FPDF_LoadPage(document, number - 1)
    if not page:
        yield Region(0, -1, "corrupt", "it cannot be read", weight)
        return
    try:
        notes, files = _annotations(page)
        share = weight // 2 if files else 0
        yield from _text_pieces(page, notes, number, weight - share, size, meta, context.limits.record_bytes)
        yield from _members(iter(files), share, size, context)
    finally:
        pdfium.FPDF_ClosePage(page)


def _text_pieces(
    page: Handle, notes: list[str], number: int, weight: int, size: int, meta: dict[str, Any] | None, limit: int
) -> Iterator[Record | Region]:
    """The page as a record, as a region, or, if it is blank, nothing."""
    try:
        text = _readable(_page_text(page, limit))
    except Refused as refused:
        yield Region(0, -1, refused.reason, refused.detail, weight)
        return
    if notes:
        text = "\n\n".join([text, *notes]).lstrip("\n")
    if text and not text.isspace():
        yield Record(text, 0, size, "utf-16-le", meta=meta, weight=weight, locator={"page": number})
    elif pdfium.FPDFPage_CountObjects(page) > 0:
        yield Region(0, -1, "no-text", "it shows something, but no text: scanned or drawn?", weight)


def _page_text(page: Handle, limit: int) -> str:
    """What PDFium makes of the page's characters. It adds and leaves out some: hence two counts."""
    text = pdfium.FPDFText_LoadPage(page)
    if not text:
        raise Refused("corrupt", "its text cannot be read")
    try:
        last = int(pdfium.FPDFText_CountChars(text)) - 1
        while last >= 0 and pdfium.FPDFText_GetTextIndexFromCharIndex(text, last) < 0:
            last -= 1
        if last < 0:
            return ""
        units = int(pdfium.FPDFText_GetTextIndexFromCharIndex(text, last)) + 1
        if max(units, last) * 2 > limit:
            raise Refused("record-too-large", f"more than {limit >> 20} MB of text")
        buffer = (ctypes.c_ushort * (2 * max(units, last + 1) + 2))()
        written = int(pdfium.FPDFText_GetText(text, 0, last + 1, buffer))
        return _decoded(buffer, written * 2 - 2)
    finally:
        pdfium.FPDFText_ClosePage(text)


def _readable(text: str) -> str:
    """Words whole again, ligatures as letters, one kind of line end. Raises Refused("undecodable") if the fonts do not
    say what their signs mean, so that the text is one of glyph numbers."""
    text = _LIGATURE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), _SOFT_HYPHEN.sub("", text))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(_UNMAPPED.findall(text)) > UNMAPPED * len(text):
        raise Refused("undecodable", "its fonts do not say which characters they show")
    return text


def _annotations(page: Handle) -> tuple[list[str], list[Handle]]:
    """What readers wrote on the page (comments, filled fields), and the files that are pinned to it."""
    notes: dict[str, None] = {}
    files: list[Handle] = []
    for number in range(min(int(pdfium.FPDFPage_GetAnnotCount(page)), _ANNOTATIONS)):
        annotation = pdfium.FPDFPage_GetAnnot(page, number)
        if not annotation:
            continue
        kind = int(pdfium.FPDFAnnot_GetSubtype(annotation))
        if kind == _FILE:
            file = pdfium.FPDFAnnot_GetFileAttachment(annotation)
            files += [file] if file else []
        elif kind not in (_LINK, _POPUP):
            key = b"V" if kind == _WIDGET else b"Contents"
            note = _string(lambda buffer, n, a=annotation, k=key: pdfium.FPDFAnnot_GetStringValue(a, k, buffer, n))
            notes.update({note: None} if note else {})
        pdfium.FPDFPage_CloseAnnot(annotation)
    return list(notes), files


def _members(files: Iterator[Handle], weight: int, size: int, context: Context) -> Iterator[Member | Region]:
    """Attached files; one that lies in the file as a reference only is left out."""
    found: list[tuple[str, bytes]] = []
    for number, file in enumerate(files, 1):
        name = _string(lambda buffer, n, f=file: pdfium.FPDFAttachment_GetName(f, buffer, n))
        data = _file_bytes(file)
        if data is None:
            continue
        try:
            context.budget.expand(len(data), size, len(data))
        except Refused as bomb:
            yield Region(0, -1, bomb.reason, f"{name or 'an attachment'}: {bomb.detail}"[:200], weight)
            return
        found.append((name or f"attachment-{number}", data))
    for (name, data), share in zip(found, split(weight, [len(data) or 1 for _, data in found]), strict=True):
        yield Member(name, from_bytes(data), weight=share, end=size)


def _file_bytes(file: Handle) -> bytes | None:
    length = ctypes.c_ulong()
    if not pdfium.FPDFAttachment_GetFile(file, None, 0, length) or not length.value:
        return None
    buffer = ctypes.create_string_buffer(length.value)
    if not pdfium.FPDFAttachment_GetFile(file, buffer, length.value, length):
        return None
    return buffer.raw


def _meta(document: Handle) -> dict[str, Any] | None:
    meta = {
        name: value
        for name, key in _META.items()
        if (value := _string(lambda buffer, n, k=key: pdfium.FPDF_GetMetaText(document, k, buffer, n)))
    }
    return meta or None


def _string(read: Callable[[Any, int], int]) -> str:
    """PDFium's way to give a string: ask for its length in bytes, then for the UTF-16 itself, with a NUL."""
    length = int(read(None, 0))
    if length <= 2 or length > 1 << 16:
        return ""
    buffer = (ctypes.c_ushort * (length // 2 + 1))()
    read(buffer, length)
    return " ".join(_decoded(buffer, length - 2).split())


def _decoded(buffer: Any, size: int) -> str:
    return bytes(memoryview(buffer).cast("B")[:size]).decode("utf-16-le", "replace").replace("\0", "")
