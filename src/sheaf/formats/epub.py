"""EPUB 2 and 3: a record a chapter, in the order of the book's spine, at {"chapter": n}; pictures are members.

Chapters are XHTML and read as HTML, with all that they show: a book has no navigation around its text. Title, author
and language come from the package document. A chapter is charged its compressed bytes; what the book needs besides
(styles, fonts, tables of contents) is structure, and so is a chapter without words, such as a cover. A chapter that is
damaged keeps what comes before the damage. Books under DRM are refused as encrypted; scrambled fonts are no DRM.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from urllib.parse import unquote

from sheaf.formats import html
from sheaf.formats.encoding import decode
from sheaf.formats.package import Entry, Package, open_package
from sheaf.formats.piece import Context, Member, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream
from sheaf.formats.xml_text import elements

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_FONT_SCRAMBLING = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document", "application/x-dtbook+xml")
_META = {"title": "title", "creator": "author", "language": "language", "publisher": "publisher"}


@dataclass(frozen=True, slots=True)
class _Book:
    """chapters, pictures: names of parts. meta: of every chapter."""

    chapters: list[str]
    pictures: list[str]
    meta: dict[str, str]


def parse(stream: Stream, context: Context) -> Pieces:
    package = open_package(stream, context)
    _refuse_locked(package, context)
    book = _book(package, context)
    size = package.size
    said = False
    for number, name in enumerate(book.chapters, 1):
        if number > context.limits.pages:
            rest = {"chapter": [number, len(book.chapters)]}
            yield Region(0, size, "bomb", f"more than {context.limits.pages:,} chapters", 1, rest)
            break
        for piece in _chapter(package, name, number, book.meta, context):
            said = True
            yield piece
    for name in book.pictures:
        if (entry := package.find(name)) is not None:
            said = True
            yield Member(name, package.stream(entry, context), weight=max(entry.packed, 1), end=size)
    if not said:
        raise Refused("no-text", "no chapter holds text")


def _chapter(package: Package, name: str, number: int, meta: dict[str, str], context: Context) -> Pieces:
    locator = {"chapter": number}
    entry = package.find(name)
    if entry is None:
        yield Region(0, 0, "corrupt", f"{name[:100]} is missing", 0, locator)
        return
    part = package.read(entry, context, context.limits.record_bytes)
    weight = max(part.packed, 1)
    try:
        decoded = decode(part.data, html.declared(part.data, context))
    except Refused as refused:
        yield Region(0, package.size, refused.reason, refused.detail, weight, locator)
        return
    page = decoded.text
    text = html.visible_text(page)
    if part.problem is not None:
        yield Region(0, package.size, part.problem.reason, part.problem.detail, 1 if text else weight, locator)
        weight -= 1
    if text:
        named = {"chapter": title} if (title := html.title_of(page)) and title != meta.get("title") else {}
        record = Record(text, 0, package.size, decoded.encoding, meta={**meta, **named}, weight=max(weight, 1))
        record.gaps, record.locator = bool(decoded.bad), locator
        yield record


def _book(package: Package, context: Context) -> _Book:
    """What the package document says. Raises Refused("corrupt")."""
    path = _package_document(package, context)
    folder = posixpath.dirname(path)
    manifest: dict[str, tuple[str, str]] = {}
    spine: list[str] = []
    meta: dict[str, str] = {}
    for name, attributes, text in elements(_read(package, path, context)):
        if name == "item":
            href = posixpath.normpath(posixpath.join(folder, unquote(attributes.get("href", ""))))
            manifest[attributes.get("id", "")] = (href, attributes.get("media-type", ""))
        elif name == "itemref":
            spine.append(attributes.get("idref", ""))
        elif name in _META and text:
            meta[_META[name]] = f"{meta[_META[name]]}; {text}" if _META[name] in meta else text
    chapters = [manifest[key][0] for key in spine if key in manifest and manifest[key][1].lower() in _PAGES]
    if not chapters:
        raise Refused("corrupt", "its spine names no chapter")
    return _Book(chapters, [href for href, media in manifest.values() if media.startswith("image/")], meta)


def _package_document(package: Package, context: Context) -> str:
    if package.find(_CONTAINER) is not None:
        for name, attributes, _ in elements(_read(package, _CONTAINER, context)):
            if name == "rootfile" and attributes.get("full-path"):
                return attributes["full-path"]
    documents = [entry.name for entry in package.entries if entry.name.lower().endswith(".opf")]
    if not documents:
        raise Refused("corrupt", "an EPUB without a package document")
    return documents[0]


def _refuse_locked(package: Package, context: Context) -> None:
    if package.find(_ENCRYPTION) is None:
        return
    for name, attributes, _ in elements(_read(package, _ENCRYPTION, context)):
        if name == "EncryptionMethod" and attributes.get("Algorithm") not in _FONT_SCRAMBLING:
            raise Refused("encrypted", "a book under DRM")


def _read(package: Package, name: str, context: Context) -> bytes:
    entry: Entry | None = package.find(name)
    if entry is None:
        raise Refused("corrupt", f"{name[:100]} is missing")
    part = package.read(entry, context, context.limits.record_bytes)
    if part.problem is not None:
        raise part.problem
    return part.data
