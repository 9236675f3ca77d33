"""Which document a zip is: Office Open XML, OpenDocument, EPUB, iWork, XPS; or none, then it is an archive.

Office Open XML (ECMA-376 part 2) names its main part in _rels/.rels, and that part's type in [Content_Types].xml, which
may be anywhere in the zip. OpenDocument and EPUB have an entry `mimetype`; writers that left it out are known by
META-INF. What is a zip for other reasons (jar, apk, kmz, nupkg) is read as an archive. Costs reading the directory.
"""

from __future__ import annotations

import re
from typing import BinaryIO, NamedTuple

from sheaf.formats.package import Package
from sheaf.formats.stream import Refused

__all__ = ["DOCX", "EPUB", "ODF", "ODS", "PPTX", "XLSB", "XLSX", "Found", "recognise"]

_OOXML = "application/vnd.openxmlformats-officedocument."
_ODF = "application/vnd.oasis.opendocument."
DOCX = f"{_OOXML}wordprocessingml.document"
PPTX = f"{_OOXML}presentationml.presentation"
XLSX = f"{_OOXML}spreadsheetml.sheet"
XLSB = "application/vnd.ms-excel.sheet.binary.macroEnabled.12"
ODF = f"{_ODF}text"
ODS = f"{_ODF}spreadsheet"
EPUB = "application/epub+zip"


class Found(NamedTuple):
    """media: exact. reader: the media type in the table whose parser reads it, "" if none does. name: for people."""

    media: str
    reader: str
    name: str


_HEAD = 1 << 20  # more of [Content_Types].xml is not looked at
_MAIN = re.compile(rb"<(?:\w+:)?Relationship\b[^>]{0,2000}?>")
_TYPE = re.compile(rb"\bType\s*=\s*[\"']([^\"']{1,300})")
_TARGET = re.compile(rb"\bTarget\s*=\s*[\"']([^\"']{1,1000})")
_OVERRIDE = re.compile(rb"<(?:\w+:)?(?:Override|Default)\b[^>]{0,2000}?>")
_PART = re.compile(rb"\b(?:PartName|Extension)\s*=\s*[\"']([^\"']{1,1000})")
_CONTENT = re.compile(rb"\bContentType\s*=\s*[\"']([^\"']{1,300})")
_ROOTS = (
    ("word/document.xml", DOCX),
    ("xl/workbook.xml", XLSX),
    ("xl/workbook.bin", XLSB),
    ("ppt/presentation.xml", PPTX),
)
_NAMES = {DOCX: "Word document", XLSX: "Excel workbook", XLSB: "Excel workbook", PPTX: "PowerPoint presentation"}


def recognise(file: BinaryIO) -> Found | None:
    """None: an archive like any other."""
    try:
        package = Package(file)
    except Refused:
        return None  # the archive's parser will say why
    return _office(package) or _by_mimetype(package) or _by_folders(package)


def _office(package: Package) -> Found | None:
    types = _ascii(package.head("[Content_Types].xml", _HEAD))
    if not types and package.whole:
        return None
    part, relation = _main_part(package)
    if relation.endswith(b"/fixedrepresentation"):
        return Found("application/vnd.ms-xpsdocument", "", "XPS document")
    media = _content_type(types, part) if part else ""
    if media:
        found = _by_content_type(media)
        if found:
            return found
    for name, kind in _ROOTS:
        if package.find(name):
            return Found(kind, kind, _NAMES[kind])
    return None


def _main_part(package: Package) -> tuple[str, bytes]:
    """The target of the package's main relationship, and the relationship's type."""
    for tag in _MAIN.findall(_ascii(package.head("_rels/.rels", _HEAD))):
        kind, target = _TYPE.search(tag), _TARGET.search(tag)
        if (
            kind
            and target
            and kind[1].endswith((b"/officeDocument", b"/fixedrepresentation", b"/relationships/document"))
        ):
            return target[1].decode("utf-8", "replace").lstrip("/").lower(), kind[1]
    return "", b""


def _content_type(types: bytes, part: str) -> str:
    suffix = part.rpartition(".")[2]
    by_suffix = ""
    for tag in _OVERRIDE.findall(types):
        name, content = _PART.search(tag), _CONTENT.search(tag)
        if not name or not content:
            continue
        target = name[1].decode("utf-8", "replace").lstrip("/").lower()
        if target == part:
            return content[1].decode("utf-8", "replace").lower()
        if target == suffix and "/" not in target:
            by_suffix = content[1].decode("utf-8", "replace").lower()
    return by_suffix


def _by_content_type(content: str) -> Found | None:
    """From the main part's type, which is the document's with .main (and +xml) behind it."""
    media = content.removesuffix("+xml").removesuffix(".main")
    if "macroenabled" in media:
        media = media.replace("macroenabled", "macroEnabled") + ".12"
    if "visio" in media:
        return Found(media, "", "Visio drawing")
    if "sheet.binary" in media:
        return Found(XLSB, XLSB, _NAMES[XLSB])
    for family, words in (
        (DOCX, ("wordprocessingml", "ms-word")),
        (XLSX, ("spreadsheetml", "ms-excel")),
        (PPTX, ("presentationml", "ms-powerpoint")),
    ):
        if any(word in media for word in words):
            return Found(media, family, _NAMES[family])
    return None


def _by_mimetype(package: Package) -> Found | None:
    media = package.head("mimetype", 200).decode("ascii", "replace").strip("\ufeff \r\n\t\0").lower()
    if media == EPUB:
        return Found(EPUB, EPUB, "EPUB")
    if media.startswith((_ODF, "application/vnd.sun.xml.")):
        return _open_document(media)
    return None


def _open_document(media: str) -> Found:
    word = media.removeprefix(_ODF).removeprefix("application/vnd.sun.xml.")
    if word.startswith(("spreadsheet", "calc")):
        return Found(media, ODS, "OpenDocument spreadsheet")
    if word.startswith(("database", "base", "image")):
        return Found(media, "", f"OpenDocument {word}")
    return Found(media, ODF, f"OpenDocument {word}")


def _by_folders(package: Package) -> Found | None:
    """Documents whose writer left `mimetype` out, and Apple's, which have none."""
    if package.find("META-INF/manifest.xml") and package.find("content.xml"):
        manifest = package.head("META-INF/manifest.xml", _HEAD)
        found = re.search(rb"application/vnd\.(?:oasis\.opendocument|sun\.xml)\.[\w.-]{1,60}", manifest)
        if found:
            return _open_document(found[0].decode("ascii"))
    if package.find("META-INF/container.xml") and b".opf" in package.head("META-INF/container.xml", 1 << 16):
        return Found(EPUB, EPUB, "EPUB")
    names = {entry.name.rpartition("/")[2].lower() for entry in package.entries}
    if names & {"document.iwa", "index.apxl", "buildversionhistory.plist"}:
        return Found("application/vnd.apple.iwork", "", "iWork document")
    return None


def _ascii(data: bytes) -> bytes:
    """XML in UTF-16 too: what is looked for is ASCII."""
    return data.replace(b"\0", b"") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else data
