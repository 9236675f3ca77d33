"""XML: the text between its tags, by expat, in one pass from front to back.

No DTD is loaded, no address is opened, and no declared entity is expanded: a reference to one stays as it is written
(&name;), unless it stands for one character; so do unknown ones, but for HTML's (&nbsp;). Elements beside text are part
of their sentence, other elements stand on lines of their own; indentation goes, except where the document says
xml:space="preserve" or the element is one of code. Feeds and dumps (RSS, Atom, MediaWiki, MARC, rows in attributes)
give a record an entry; other documents one record, unless they are longer than a record may be: then an element of the
uppermost level that repeats is a record. Style sheets, schemas, and documents without any text between their tags
(settings, layouts) are source code, and stay as they are written. XHTML is read as HTML.

A mistake ends the reading: what comes before it is kept, what comes after is a region that names line and column. The
commonest are none to us: an "&" that begins no reference is one ("AT&T", "&#0;"), and bytes that are no UTF-8 and
control characters, which XML forbids, are read as "?" and noted. Memory: one record, and depth.
"""

from __future__ import annotations

import codecs
import contextlib
import html
import re
from collections.abc import Iterator
from html.entities import html5
from pyexpat import ExpatError, ParserCreate, XMLParserType, errors
from typing import Any

from sheaf.formats import html as html_page
from sheaf.formats import rows
from sheaf.formats import text as plain
from sheaf.formats.encoding import MARKS, STATEFUL, WIDE, codec_name, decode
from sheaf.formats.piece import Context, Piece, Pieces, Record, Refused, Region
from sheaf.formats.stream import BLOCK, Stream
from sheaf.formats.xml_tree import Entry, Row, Tree

HEAD = 1 << 16
_CODE = ("http://www.w3.org/1999/XSL/Transform", "http://www.w3.org/2001/XMLSchema")
_XHTML = "http://www.w3.org/1999/xhtml"
# An "&" that is text goes through expat as DEL, so that every place stays where it is; a DEL of the text is a "?".
AMPERSAND = "\x7f"
_FORBIDDEN = bytes(c for c in range(32) if c not in b"\t\n\r") + AMPERSAND.encode()
_CLEAN = bytes.maketrans(_FORBIDDEN, b"?" * len(_FORBIDDEN))
_ASCII = bytes(range(0x80)) + b"?" * 0x80
_REFERENCE = (
    rb"[A-Za-z_:\x80-\xff][-\w.:\x80-\xff]{0,99};"
    rb"|#0*(?:9|10|13|3[2-9]|[4-9]\d|[1-9]\d{2,3}|[1-4]\d{4}|5[0-4]\d{3}|6[0-4]\d{3}|[1-9]\d{5});"
    rb"|#x0*(?:9|[ad]|[2-9a-f][0-9a-f]|[1-9a-f][0-9a-f]{2}|[1-9abce][0-9a-f]{3}|d[0-7][0-9a-f]{2}|f[0-9a-e][0-9a-f]{2}"
    rb"|[1-9a-f][0-9a-f]{4});"
)
_BARE = re.compile(rb"&(?!" + _REFERENCE + rb")", re.I)
_MOST_REFERENCE = 110  # bytes, and a bit
_ESCAPED = re.compile("[\udc80-\udcff]")
_CUT = frozenset(errors.codes[message] for message in (errors.XML_ERROR_NO_ELEMENTS, errors.XML_ERROR_UNCLOSED_TOKEN))


def parse(stream: Stream, context: Context) -> Pieces:
    encoding = _encoding(stream, context)
    if encoding == "utf-8" or _one_byte(encoding):
        return _document(stream, context, encoding)
    # expat knows UTF-16, but no Chinese, Japanese or Korean encoding: these go through UTF-8.
    return rows.transcoded(stream, context, encoding, lambda inner, outer: _document(inner, outer, "utf-8"))


def elements(raw: bytes) -> list[tuple[str, Row, str]]:
    """Every element of a small document, in order: its name without prefix, its attributes, its own text.
    Raises Refused("corrupt")."""
    found: list[tuple[str, Row, list[str]]] = []
    open_: list[list[str]] = []

    def start(name: str, attributes: Row) -> None:
        words: list[str] = []
        open_.append(words)
        found.append((name.rpartition(":")[2], attributes, words))

    def text(data: str) -> None:
        if open_:
            open_[-1].append(data)

    parser = _parser(None)
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: open_.pop()
    try:
        parser.Parse(raw, True)
    except (ExpatError, ValueError, LookupError) as error:
        raise Refused("corrupt", f"XML, {error}"[:200]) from None
    return [(name, attributes, " ".join("".join(words).split())) for name, attributes, words in found]


def _document(stream: Stream, context: Context, encoding: str) -> Pieces:
    name, namespace = _root(stream.peek(HEAD), encoding)
    if name == "html" and namespace == _XHTML:
        yield from html_page.parse(stream, context)
    elif namespace in _CODE:
        yield from plain.parse(stream, context)
    else:
        yield from _Reader(stream, context, encoding).pieces()


class _Reader:
    """One document from its stream to its pieces."""

    def __init__(self, stream: Stream, context: Context, encoding: str) -> None:
        self._stream, self._context, self._encoding = stream, context, encoding
        self._like_ascii = bytes(range(0x80)).decode(encoding) == bytes(range(0x80)).decode()
        self._limit = context.limits.record_bytes
        self._rows = bool(rows.wanted(context.options) or context.options.key)
        self._tree = tree = Tree(everything=self._rows)
        self._parser = parser = _parser(encoding)
        self._source: list[bytes] = []  # the document as it is written, as long as it may be one record
        self._number = 0
        self._replaced = 0
        parser.StartElementHandler = lambda name, attributes: tree.start(
            name, {key: _ampersands(value) for key, value in attributes.items()}, parser.CurrentByteIndex
        )
        parser.EndElementHandler = lambda _: tree.end(parser.CurrentByteIndex)
        parser.CharacterDataHandler = lambda data: tree.text(_ampersands(data))

        entities: dict[str, str] = {}

        def declared(name: str, parameter: bool, value: str | None, *_: str | None) -> None:
            if not parameter:
                entities[name] = value if value is not None and len(value) == 1 else f"&{name};"

        def default(data: str) -> None:
            if data.startswith("&"):  # an external entity
                tree.text(data)

        def skipped(name: str, parameter: bool) -> None:
            if not parameter:
                tree.text(entities.get(name) or _named(f"&{name};"))

        parser.DefaultHandler, parser.SkippedEntityHandler, parser.EntityDeclHandler = default, skipped, declared

    def pieces(self) -> Pieces:
        problem: Refused | None = None
        end = 0
        try:
            for block in self._blocks():
                self._parser.Parse(block, not block)
                yield from self._entries()
                self._watch_size()
            end = self._stream.position
        except ExpatError as error:
            self._parser.buffer_text = False  # hands over the text before the mistake
            end = max(self._parser.ErrorByteIndex, 0)
            cut = error.code in _CUT and self._stream.problem is None
            where = f"line {error.lineno}, column {error.offset + 1}"
            problem = Refused("truncated" if cut else "corrupt", f"{where}: {errors.messages[error.code]}")
        except Refused as refused:
            self._parser.buffer_text = False
            end, problem = max(self._parser.CurrentByteIndex, 0), refused
        yield from self._rest(end, problem)

    def _rest(self, end: int, problem: Refused | None) -> Pieces:
        tree = self._tree
        text = tree.finish(end)
        if problem and problem.reason == "record-too-large":
            text = ""
        yield from self._entries()
        if not tree.found and (text or problem is None):
            yield from self._whole(text, end)
        if tree.stray or (tree.found and text and tree.splitting()):
            self._context.notes.append("text between the entries was left out")
        if self._replaced:
            self._context.notes.append(f"{self._replaced:,} bytes that are no UTF-8 were read as ?")
        if problem is not None:
            self._stream.drain()
            start = 0 if problem.reason == "record-too-large" and not tree.found else end
            yield Region(start, self._stream.position, problem.reason, problem.detail)

    def _whole(self, text: str, end: int) -> Pieces:
        """The document as one record; as it is written, if all that it says is in its tags."""
        if text or self._tree.root.lower() == "svg":
            meta = self._meta(self._tree.title)
            yield Record(text, 0, end, self._encoding, meta=meta) if text else Region(0, end, "no-text", "a drawing")
        else:
            raw = b"".join(self._source)
            yield from plain.whole(raw, plain.declared(raw, self._context))

    def _blocks(self) -> Iterator[bytes]:
        """The stream's blocks as expat takes them, of the same length in all; the last is empty."""
        carry = b""
        while block := self._stream.read(BLOCK):
            if self._stream.position <= self._limit:
                self._source.append(block)
            block, carry = self._cleaned(carry + block)
            if block:
                yield block
        if carry:
            yield _bare(carry.translate(_CLEAN).translate(_ASCII))
        yield b""

    def _cleaned(self, data: bytes) -> tuple[bytes, bytes]:
        """What expat can take of it, and what has to wait for more."""
        if not self._like_ascii:
            return data, b""
        last = data.rfind(b"&", -_MOST_REFERENCE)
        kept = b""
        if last >= 0 and b";" not in data[last:]:
            data, kept = data[:last], data[last:]
        data, carry = self._clean(data) if self._encoding == "utf-8" else (data.translate(_CLEAN), b"")
        return _bare(data), carry + kept

    def _clean(self, data: bytes) -> tuple[bytes, bytes]:
        """What expat would stop at as "?", byte for byte; and the beginning of a character that the data cuts."""
        text, used = codecs.utf_8_decode(data, "surrogateescape", False)
        clean, carry = data[:used], data[used:]
        if not text.isascii() and _ESCAPED.search(text):
            text, bad = _ESCAPED.subn("?", text)
            self._replaced += bad
            clean = text.encode()
        return clean.translate(_CLEAN), carry

    def _watch_size(self) -> None:
        tree, parser = self._tree, self._parser
        if self._stream.position <= self._limit:
            return
        self._source.clear()
        if not tree.found and not tree.splitting() and tree.open_entry() < 0 and not tree.split():
            raise Refused("record-too-large", f"more than {self._limit >> 20} MB, and no element that repeats")
        start = tree.open_entry()
        if start >= 0 and parser.CurrentByteIndex - start > self._limit:
            tree.give_up()

    def _entries(self) -> Iterator[Piece]:
        entries, self._tree.entries = self._tree.entries, []
        for entry in entries:
            yield self._piece(entry)
            self._number += 1

    def _piece(self, entry: Entry) -> Piece:
        start, end, row = entry.start, entry.end, entry.row
        if entry.large:
            return Region(start, end, "record-too-large", f"more than {self._limit >> 20} MB in one element")
        if row and (self._rows or not entry.text):
            return rows.record(dict[str, Any](row), start, end, self._encoding, self._context.options, self._number)
        title = (row or {}).get("title", "")
        return Record(entry.text, start, end, self._encoding, meta=self._meta(title))

    def _meta(self, title: str) -> dict[str, Any]:
        tree = self._tree
        whole = tree.title if tree.title != title else ""
        named = {"root": tree.root, "namespace": tree.namespace, "title": title, "collection": whole}
        return {key: value for key, value in named.items() if value}


def _parser(encoding: str | None) -> XMLParserType:
    parser = ParserCreate(encoding)
    parser.buffer_text = True
    parser.DefaultHandler = _nothing  # with one, declared entities are not expanded
    parser.UseForeignDTD(True)  # an unknown entity is skipped, not an error; nothing is ever loaded
    return parser


def _bare(data: bytes) -> bytes:
    return _BARE.sub(AMPERSAND.encode(), data) if b"&" in data else data


def _ampersands(data: str) -> str:
    return data.replace(AMPERSAND, "&") if AMPERSAND in data else data


def _nothing(_: str) -> None:
    """Prolog, comments, references."""


def _named(reference: str) -> str:
    """What HTML calls so, as its character; other entities as they are written."""
    return html.unescape(reference) if reference[1:] in html5 else reference


class _Found(Exception):
    pass


def _root(head: bytes, encoding: str) -> tuple[str, str]:
    """The name and the namespace of the first element; ("", "") if none begins here."""
    tree = Tree()
    parser = _parser(encoding)

    def start(name: str, attributes: Row) -> None:
        tree.start(name, attributes, 0)
        raise _Found

    parser.StartElementHandler = start
    with contextlib.suppress(_Found, ExpatError):
        parser.Parse(head.translate(_CLEAN) if encoding == "utf-8" else head, False)
    return tree.root, tree.namespace


def _encoding(stream: Stream, context: Context) -> str:
    head = stream.peek(HEAD)
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    label = plain.declared(head, context)
    if codec_name(label) == "utf-8":
        text = head.decode("utf-8", "replace")
        if 2 * text.count("\ufffd") <= len(text) - len(text.encode("ascii", "ignore")):
            return "utf-8"  # with bytes that are none: they are replaced
    cut = head if len(head) < HEAD else head[: head.rfind(b">") + 1]
    try:
        return decode(cut, label).encoding
    except Refused:
        return "utf-8"


def _one_byte(encoding: str) -> bool:
    if encoding in WIDE or encoding in STATEFUL:
        return False
    return len(bytes(range(256)).decode(encoding, "replace")) == 256
