"""PPT, PowerPoint's binary format (MS-PPT): a record a slide, {"slide": n}, in the order in which they are shown.

The stream "PowerPoint Document" is a tree of records, appended to at every save; the newest edit says where the objects
lie now. A slide's text is in its shapes, or in the outline that the document keeps for all slides; then come its notes.
If the edits cannot be followed, all text found in the stream is one record. Embedded files are members, unpacked here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from sheaf.formats.ole import open_compound
from sheaf.formats.piece import Context, Member, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream, from_bytes

_DOCUMENT, _SLIDE, _NOTES, _NOTES_ATOM = 1000, 1006, 1008, 1009
_PERSIST, _OUTLINE_REF, _TEXT_HEADER, _CHARS, _BYTES = 1011, 3998, 3999, 4000, 4008
_LIST, _EDIT, _DIRECTORY, _OLE = 4080, 4085, 6002, 4113
_PLACEHOLDER_TEXT = frozenset(("*", "Click to edit Master title style", "Click to edit Master text styles"))
_ENCRYPTED_TOKEN = b"\xdf\xc4\xd1\xf3"
_BREAKS = str.maketrans({"\r": "\n", "\x0b": "\n"})
_DEPTH = 60


class _Atom(NamedTuple):
    version: int
    instance: int
    kind: int
    start: int
    end: int


class _Listed(NamedTuple):
    """A slide as the document lists it: its object, its number, and its texts in the outline."""

    object: int
    number: int
    texts: list[str]


def parse(stream: Stream, context: Context) -> Pieces:
    compound, size = open_compound(stream, context)
    limit = context.limits.document_bytes
    user = compound.read("Current User", limit=limit) or b""
    if user[12:16] == _ENCRYPTED_TOKEN or compound.has("EncryptedSummary"):
        raise Refused("encrypted", "a password is needed")
    data = compound.read("PowerPoint Document", limit=limit) or b""
    deck = _Deck(data, user)
    found = False
    if deck.slides:
        share = len(data) // max(1, len(deck.slides))
        for number, slide in enumerate(deck.slides, 1):
            if number > context.limits.pages:
                raise Refused("bomb", f"more than {context.limits.pages:,} slides")
            text = deck.text(slide)
            if text:
                found = True
                yield Record(text, 0, size, "utf-8", None, share, locator={"slide": number})
            elif slide.object not in deck.objects:
                yield Region(0, size, "corrupt", "the slide is not where the document says", share, {"slide": number})
    else:
        text = "\n\n".join(deck.everything())
        found = bool(text)
        if text:
            context.notes.append("the slides cannot be told apart")
            yield Record(text, 0, size, "utf-8", None, len(data), locator={"slide": 1})
    inner = list(deck.embedded())
    if not found and not inner:
        yield Record("", 0, size, "utf-8", None, 0)
    for number, packed in enumerate(inner, 1):
        yield _member(packed, number, context)


def _member(packed: bytes, number: int, context: Context) -> Member:
    """An OLE object, compressed if its first bytes say how large it becomes."""
    codec = zlib.decompressobj()
    waiting = packed[4:]
    given = 0

    def fill(n: int) -> bytes:
        nonlocal waiting, given
        try:
            block = codec.decompress(waiting, n)
        except zlib.error as error:
            raise Refused("corrupt", f"{error}"[:200]) from None
        waiting = codec.unconsumed_tail
        given += len(block)
        context.budget.expand(len(block), len(packed), given)
        if not block and not codec.eof and given < int.from_bytes(packed[:4], "little"):  # some end without a checksum
            raise Refused("truncated", "the object ends too early")
        return block

    compressed = packed[4:6] in (b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x78\x5e")
    return Member(f"object-{number}", Stream(fill) if compressed else from_bytes(packed), len(packed))


class _Deck:
    """objects: where the objects lie now, by number. slides: those that the document lists, in order."""

    def __init__(self, data: bytes, user: bytes) -> None:
        self._data = data
        self.objects: dict[int, int] = {}
        self.slides: list[_Listed] = []
        self._notes: dict[int, str] = {}
        self._used: set[int] = set()
        document = self._follow_edits(user)
        if document is not None:
            lists = [atom for atom in self._children(document) if atom.kind == _LIST]
            for atom in lists:
                if atom.instance == 0:
                    self.slides = list(self._listed(atom))
            for atom in lists:
                if atom.instance == 2:
                    self._read_notes(atom)

    def text(self, slide: _Listed) -> str:
        container = self._once(slide.object, _SLIDE)
        shapes = list(self._texts(container, slide.texts)) if container else []
        outline = [text for text in slide.texts if text not in shapes]
        texts = [*outline, *shapes, self._notes.get(slide.number, "")]
        return "\n\n".join(text for text in texts if text.strip() and text.strip() not in _PLACEHOLDER_TEXT)

    def everything(self) -> Iterator[str]:
        """All texts in the stream, old ones too."""
        at = 0
        while (atom := self._atom(at)) is not None:
            text = self._text(atom)
            if text.strip() and text.strip() not in _PLACEHOLDER_TEXT:
                yield text
            at = atom.start if atom.version == 15 else atom.end

    def embedded(self) -> Iterator[bytes]:
        for at in sorted(set(self.objects.values())):
            atom = self._atom(at)
            if atom is not None and atom.kind == _OLE and atom.instance in (0, 1):
                yield self._data[atom.start : atom.end]

    def _follow_edits(self, user: bytes) -> _Atom | None:
        """Fill objects from the newest edit backwards; the document's container."""
        at = struct.unpack_from("<I", user, 16)[0] if len(user) >= 20 else 0
        document = -1
        seen: set[int] = set()
        while at not in seen:
            seen.add(at)
            edit = self._atom(at)
            if edit is None or edit.kind != _EDIT or edit.end - edit.start < 20:
                break
            at, directory, number = struct.unpack_from("<III", self._data, edit.start + 8)
            document = number if document < 0 else document
            self._read_directory(directory)
            if at == 0:
                break
        found = self._atom(self.objects[document]) if document in self.objects else None
        return found if found is not None and found.kind == _DOCUMENT else None

    def _read_directory(self, at: int) -> None:
        directory = self._atom(at)
        if directory is None or directory.kind != _DIRECTORY:
            return
        at = directory.start
        while at + 4 <= directory.end:
            (word,) = struct.unpack_from("<I", self._data, at)
            first, count = word & 0xFFFFF, word >> 20
            at += 4
            for number in range(first, first + min(count, (directory.end - at) // 4)):
                self.objects.setdefault(number, struct.unpack_from("<I", self._data, at)[0])
                at += 4

    def _listed(self, parent: _Atom) -> Iterator[_Listed]:
        slide: _Listed | None = None
        for atom in self._children(parent):
            if atom.kind == _PERSIST and atom.end - atom.start >= 16:
                if slide:
                    yield slide
                number, _, _, key = struct.unpack_from("<IIII", self._data, atom.start)
                slide = _Listed(number, key, [])
            elif slide and atom.kind == _TEXT_HEADER:
                slide.texts.append("")
            elif slide and slide.texts and atom.kind in (_CHARS, _BYTES):
                slide.texts[-1] = self._text(atom)
        if slide:
            yield slide

    def _read_notes(self, parent: _Atom) -> None:
        for listed in self._listed(parent):
            container = self._once(listed.object, _NOTES)
            if container is None:
                continue
            for atom in self._children(container):
                if atom.kind == _NOTES_ATOM and atom.end - atom.start >= 4:
                    (number,) = struct.unpack_from("<I", self._data, atom.start)
                    texts = (t for t in self._texts(container, listed.texts) if t.strip() not in _PLACEHOLDER_TEXT)
                    self._notes[number] = "\n\n".join(texts)

    def _once(self, number: int, kind: int) -> _Atom | None:
        """An object's container, the first time: a small file could list a large object a thousand times."""
        at = self.objects.get(number)
        atom = self._atom(at) if at is not None and at not in self._used else None
        if at is None or atom is None or atom.kind != kind:
            return None
        self._used.add(at)
        return atom

    def _texts(self, parent: _Atom, outline: list[str], depth: int = 0) -> Iterator[str]:
        """The texts of the shapes below a record."""
        if depth > _DEPTH:
            return
        for atom in self._children(parent):
            if atom.kind == _OUTLINE_REF and atom.end - atom.start >= 4:
                (number,) = struct.unpack_from("<I", self._data, atom.start)
                if number < len(outline) and outline[number].strip():
                    yield outline[number]
            elif atom.version == 15:
                yield from self._texts(atom, outline, depth + 1)
            elif text := self._text(atom).strip():
                yield text

    def _text(self, atom: _Atom) -> str:
        raw = self._data[atom.start : atom.end] if atom.kind in (_CHARS, _BYTES) else b""
        return raw.decode("utf-16-le" if atom.kind == _CHARS else "latin-1", "replace").translate(_BREAKS)

    def _children(self, parent: _Atom) -> Iterator[_Atom]:
        at = parent.start
        while at < parent.end and (atom := self._atom(at)) is not None:
            yield atom._replace(end=min(atom.end, parent.end))  # so that none is read twice
            at = atom.end

    def _atom(self, at: int) -> _Atom | None:
        if at < 0 or at + 8 > len(self._data):
            return None
        first, kind, size = struct.unpack_from("<HHI", self._data, at)
        return _Atom(first & 15, first >> 4, kind, at + 8, min(at + 8 + size, len(self._data)))
