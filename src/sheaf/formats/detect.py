"""What a stream holds: by its content, by its suffix only where content leaves it open. Looks at 64 KB at most.

Order: magic bytes of what we read, magic bytes of what we refuse by name, tests on the beginning as text, suffix and
claimed content type among text formats, plain text. Bytes that are no text at all are refused when they are decoded.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass

from sheaf.formats import labels, ole, table, zip_documents
from sheaf.formats.encoding import MARKS, too_many_controls, wide_encoding
from sheaf.formats.peek import Peek
from sheaf.formats.stream import Stream
from sheaf.formats.table import Format

HEAD = 1 << 16
HOLD = 128 << 20

# (offset, bytes, media type, name): what is refused by name. Longer and rarer patterns first.
UNREAD: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x7fELF", "application/x-executable", "ELF executable"),
    (0, b"MZ", "application/x-msdownload", "Windows executable"),
    (0, b"\xcf\xfa\xed\xfe", "application/x-mach-binary", "Mach-O executable"),
    (0, b"\xca\xfe\xba\xbe", "application/java-vm", "Java class"),
    (0, b"\0asm", "application/wasm", "WebAssembly"),
    (1, b"\r\r\n", "application/x-bytecode.python", "Python bytecode"),
    (1, b"\x0e\r\n", "application/x-bytecode.python", "Python bytecode"),
    (0, b"8BPS", "image/vnd.adobe.photoshop", "Photoshop image"),
    (0, b"\0\0\1\0", "image/x-icon", "icon"),
    (0, b"\0\0\0\x0cjP  ", "image/jp2", "JPEG 2000 image"),
    (8, b"AVI ", "video/x-msvideo", "AVI video"),
    (4, b"ftyp", "video/mp4", "MP4 or related media"),
    (0, b"\x1aE\xdf\xa3", "video/x-matroska", "Matroska or WebM video"),
    (0, b"SQLite format 3\0", "application/vnd.sqlite3", "SQLite database"),
    (0, b"\x89HDF\r\n\x1a\n", "application/x-hdf5", "HDF5"),
    (0, b"\x93NUMPY", "application/x-npy", "NumPy array"),
    (0, b"%!PS", "application/postscript", "PostScript"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar", "RAR archive"),
    (0, b"MSCF", "application/vnd.ms-cab-compressed", "CAB archive"),
    (0, b"!<arch>\n", "application/x-archive", "ar archive"),
    (0, b"\xed\xab\xee\xdb", "application/x-rpm", "RPM package"),
    (0, b"070701", "application/x-cpio", "cpio archive"),
    (0, b"070707", "application/x-cpio", "cpio archive"),
    (0, b"\xc7\x71", "application/x-cpio", "cpio archive"),
    (0, b"\x04\x22\x4d\x18", "application/x-lz4", "lz4 stream"),
    (0, b"LZIP", "application/x-lzip", "lzip stream"),
    (0, b"\x1f\x9d", "application/x-compress", "compress stream"),
    (2, b"-lh", "application/x-lzh-compressed", "LZH archive"),
    (0, b"PK\x07\x08", "application/zip", "part of a split zip"),
    (0, b"\0\1\0\0\0", "font/ttf", "TrueType font"),
    (0, b"OTTO", "font/otf", "OpenType font"),
    (0, b"wOFF", "font/woff", "web font"),
    (0, b"wOF2", "font/woff2", "web font"),
    (0, b"\xde\x12\x04\x95", "application/x-gettext-translation", "gettext catalogue"),
    (0, b"\x80\x04\x95", "application/x-pickle", "Python pickle (never opened)"),
    (4, b"Standard Jet DB\0", "application/x-msaccess", "Access database"),
    (4, b"Standard ACE DB\0", "application/x-msaccess", "Access database"),
    (4, b"JXL \r\n\x87\n", "image/jxl", "JPEG XL image"),
    (0, b"!BDN", "application/vnd.ms-outlook-pst", "Outlook data file"),
    (0, b"ITSF\x03\0", "application/vnd.ms-htmlhelp", "compiled HTML Help"),
    (0, b"\xffWPC", "application/vnd.wordperfect", "WordPerfect document"),
    (0, b"\0\0\x1a\0", "application/vnd.lotus-1-2-3", "Lotus 1-2-3 worksheet"),
    (0, b"\0\0\2\0", "application/vnd.lotus-1-2-3", "Lotus 1-2-3 or Quattro Pro worksheet"),
    (0, b"\x09\0\4\0", "application/vnd.ms-excel", "Excel 2 worksheet"),
    (0, b"\x09\2\6\0", "application/vnd.ms-excel", "Excel 3 worksheet"),
    (0, b"\x09\4\6\0", "application/vnd.ms-excel", "Excel 4 worksheet"),
    (0, b"xar!\0", "application/x-xar", "XAR archive"),
    (0, b"\xff\6\0\0sNaPpY", "application/x-snappy-framed", "Snappy stream"),
    (0, b"#!AMR", "audio/amr", "AMR audio"),
    (0, b".snd\0\0", "audio/basic", "AU audio"),
    (8, b"AIFF", "audio/aiff", "AIFF audio"),
    (8, b"AIFC", "audio/aiff", "AIFF audio"),
    (0, b"AT&TFORM", "image/vnd.djvu", "DjVu document"),
    (0, b"\xd7\xcd\xc6\x9a", "image/wmf", "Windows metafile"),
    (0, b"icns\0\0", "image/x-icns", "Apple icon"),
    (0, b"\xff\x4f\xff\x51", "image/x-jp2-codestream", "JPEG 2000 image"),
    (0, b"SIMPLE  =  ", "image/fits", "FITS image"),
    (32769, b"CD001", "application/x-iso9660-image", "ISO 9660 image"),
)
# Short magics that text can start with by chance: they count only when the rest is not text.
_SHORT = frozenset(
    {b"\r\r\n", b"\x0e\r\n", b"MZ", b"070701", b"070707", b"-lh", b"ftyp", b"OTTO", b"LZIP", b"!BDN", b"AIFF", b"AIFC"}
    | {b"#!AMR", b"SIMPLE  =  ", b"AT&TFORM"}
)
_STARTS = {place: tuple(magic for offset, magic, _, _ in UNREAD if offset == place) for place, *_ in UNREAD}
_TEXT_LIKE = ("text/", "application/json", "application/x-ndjson", "message/", "application/mbox", "application/xml")


@dataclass(frozen=True, slots=True)
class Kind:
    """format: None when it is not read; detail then names it. note: where suffix and content disagree."""

    media: str
    format: Format | None
    detail: str = ""
    note: str = ""


def detect(stream: Stream, name: str, media: str, hold: int = HOLD) -> Kind:
    """hold: how many bytes of a zip or OLE file inside a container may be held, to see which document it is."""
    head = stream.peek(HEAD + 1)
    whole = len(head) <= HEAD
    peek = Peek(head[:HEAD], whole, _beginning(head), suffix_of(name))
    if media == labels.MEDIA:
        return Kind(media, table.BY_MEDIA[media])
    kind = _document(stream, head, hold) or _by_content(peek) or _by_name(peek, media)
    expected = table.BY_SUFFIX.get(peek.suffix)
    if expected is None or expected.media == kind.media or not head or kind.format is expected:
        return kind
    return Kind(kind.media, kind.format, kind.detail, f"suffix {peek.suffix}, content {kind.media}")


def unread(head: bytes) -> Kind | None:
    """What is refused by name, if the beginning of a file is of such a type."""
    if not _refusable(head):
        return None
    for offset, magic, media, name in UNREAD:
        if head.startswith(magic, offset) and (magic not in _SHORT or _not_text(head)):
            return Kind(media, None, name)
    return None


def suffix_of(name: str) -> str:
    base = name.rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    return f".{suffix.lower()}" if dot and stem and len(suffix) <= 8 else ""


def claims_text(name: str, media: str) -> bool:
    """Whether the name or the content type says text: then bytes that are none are undecodable, not another type."""
    known = table.BY_SUFFIX.get(suffix_of(name))
    return media.startswith(_TEXT_LIKE) or (known is not None and not known.binary)


def _document(stream: Stream, head: bytes, hold: int) -> Kind | None:
    """The document that a zip or an OLE file is. One that is too large to hold is told by its first 64 KB."""
    if not head.startswith((ole.MAGIC, b"PK\x03\x04")):
        return None
    file = stream.hold(hold) or io.BytesIO(head)
    place = file.tell()
    found = ole.recognise(file) if head.startswith(ole.MAGIC) else zip_documents.recognise(file)
    file.seek(place)  # the stream reads on from there
    return Kind(found.media, table.BY_MEDIA.get(found.reader), found.name) if found else None


def _by_content(peek: Peek) -> Kind | None:
    for format in _by_first_byte(peek.head[:1], len(table.FORMATS)):
        if peek.head.startswith(format.magic):
            return Kind(format.media, format)
    refused = unread(peek.head)
    if refused is not None:
        return refused
    for format, looks in _by_looks(len(table.FORMATS)):
        if looks(peek):
            return Kind(format.media, format)
    return None


@functools.cache
def _by_first_byte(first: bytes, formats: int) -> tuple[Format, ...]:
    """Those of so many formats with a magic that begins so: for text mostly none."""
    return tuple(f for f in table.FORMATS[:formats] if any(magic.startswith(first) for magic in f.magic))


@functools.cache
def _by_looks(formats: int) -> tuple[tuple[Format, Callable[[Peek], bool]], ...]:
    """Those of so many formats that have a test on the beginning."""
    return tuple((f, f.looks) for f in table.FORMATS[:formats] if f.looks is not None)


def _by_name(peek: Peek, media: str) -> Kind:
    by_suffix = table.BY_SUFFIX.get(peek.suffix)
    claimed = table.BY_MEDIA.get(media.partition(";")[0].strip().lower())
    for format in (by_suffix, claimed):
        if format is not None and not format.binary and (format.may is None or format.may(peek)):
            return Kind(format.media, format)
    interpreter = _interpreter(peek)
    return Kind(interpreter.media, interpreter) if interpreter else Kind(table.TEXT.media, table.TEXT)


def _interpreter(peek: Peek) -> Format | None:
    """The language that a first line such as #!/usr/bin/env python3 names."""
    if not peek.text.startswith("#!"):
        return None
    line = peek.text.partition("\n")[0]
    for word, media in (("python", "x-python"), ("perl", "x-perl"), ("ruby", "x-ruby"), ("sh", "x-shellscript")):
        if word in line:
            return table.BY_MEDIA[f"text/{media}"]
    return None


def _beginning(head: bytes) -> str:
    """The first 8 KB as text, for the tests: exact for Unicode, and for ASCII inside any other encoding."""
    start = head[:8192]
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return start[len(mark) :].decode(encoding, "replace").lstrip()
    if b"\0" in start and not _refusable(start):
        encoding = wide_encoding(start[: len(start) // 4 * 4])
        if encoding:
            return start.decode(encoding, "replace").lstrip()
    return start.decode("utf-8", "replace").lstrip()


def _refusable(start: bytes) -> bool:
    return any(start.startswith(magics, offset) for offset, magics in _STARTS.items())


def _not_text(head: bytes) -> bool:
    return b"\0" in head or too_many_controls(head)
