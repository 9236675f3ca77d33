"""DOCX (WordprocessingML, ECMA-376 part 1): one record a document, as a reader sees it from top to bottom.

Paragraphs are separated by an empty line, the lines of lists and tables are not; cells are separated by tabs, list
labels are counted as Word does (`docx_lists`). Footnotes, endnotes and comments follow the text, and [n] stands where
they belong. Text in boxes and diagrams follows its paragraph. Left out: tracked deletions, field codes, and headers and
footers, which repeat on every page and go to meta. Embedded files are members; pictures, fonts and styles are
structure, as are linked files, which are never opened. A text larger than a record goes on in another record.
Locator: {"paragraphs": [first, last]}, rows of tables count as paragraphs. Streamed: one block of XML at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sheaf.formats.docx_lists import Lists
from sheaf.formats.office_text import Lines, embedded, files_under, place
from sheaf.formats.office_xml import (
    SMALL,
    Blocks,
    Element,
    Relations,
    attribute,
    core_meta,
    local,
    main_part,
    related,
)  # fmt: skip
from sheaf.formats.office_xml import parse as parse_xml
from sheaf.formats.package import Package, open_package
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream

_LEFT_OUT = frozenset(
    ("del", "moveFrom", "instrText", "delText", "delInstrText", "rPr", "pPr", "tblPr", "sectPr", "sdtPr")
)
_BREAKS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "\u2011"}
_NOTES = {"footnoteReference": "footnotes", "endnoteReference": "endnotes", "commentReference": "comments"}
_WRAPS = frozenset(
    ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag", "AlternateContent", "Choice", "Fallback")
)


def parse(stream: Stream, context: Context) -> Pieces:
    package = open_package(stream, context)
    document = main_part(package, context, "word/document.xml")
    relations = Relations(package, document.name, context)
    text = _Text(package, context, relations, document.name)
    meta: dict[str, Any] = core_meta(package, context)
    meta.update(text.edges())
    blocks = Blocks(package, document, context, "document", frozenset(("body",)))
    limit = context.limits.record_bytes // 4  # characters: at most so many bytes
    first, charged = 1, 0
    for block in blocks:
        text.add(block)
        if text.lines.characters > limit:
            weight = blocks.taken - charged
            yield Record(
                text.lines.take(), 0, package.size, "utf-8", meta, weight, locator=place(first, text.lines.count)
            )
            first, charged = text.lines.count + 1, charged + weight
    text.add_notes()
    if not text.lines.count:
        text.lines.add("\n".join(meta.get(edge, "") for edge in ("header", "footer")).strip())
    rest = max(blocks.taken, document.packed) - charged + text.notes_packed
    problem = blocks.problem
    lost = min(max(document.packed - blocks.taken, 1), rest - 1) if problem and rest > 1 else 0
    inner = embedded(package, context, [*relations.of_kind("aFChunk"), *files_under(package, "word/embeddings")])
    if text.lines.characters or not (charged or problem or inner):
        last = place(first, text.lines.count)
        yield Record(text.lines.take(), 0, package.size, "utf-8", meta, rest - lost, bool(problem), locator=last)
    if problem:
        yield Region(0, package.size, problem.reason, problem.detail, max(lost, 1))
    if text.problem:
        yield Region(0, package.size, text.problem.reason, text.problem.detail, 0)
    yield from inner


class _Text:
    """Lines of text out of blocks of XML."""

    def __init__(self, package: Package, context: Context, relations: Relations, part: str) -> None:
        self._package, self._context, self._relations, self._part = package, context, relations, part
        self.lines = Lines()
        self._after: list[Element] = []  # boxes and diagrams of the paragraph that is being read
        self._notes: dict[tuple[str, str], int] = {}  # (part, id) → number
        self._diagrams: set[str] = set()
        self.notes_packed = 0
        self.problem: Refused | None = None
        self._lists = Lists(self._tree("styles"), self._tree("numbering"))

    def add(self, block: Element) -> None:
        """A child of the body."""
        try:
            self._block(block)
        except RecursionError:
            self.problem = Refused("bomb", "a block nested too deep")

    def edges(self) -> dict[str, str]:
        """The texts of headers and footers."""
        found: dict[str, str] = {}
        for kind in ("header", "footer"):
            texts: dict[str, None] = {}
            for name in dict.fromkeys(self._relations.of_kind(kind)):
                root = self._read(name)
                if root is not None:
                    texts[" ".join(self._flat(root).split())[:1000]] = None
            texts.pop("", None)
            if texts:
                found[kind] = "\n".join(texts)
        return found

    def add_notes(self) -> None:
        """Footnotes, endnotes and comments, in the order in which the text names them."""
        parts: dict[str, dict[str, Element]] = {}
        done = 0
        while new := list(self._notes.items())[done:]:  # notes may have notes
            done += len(new)
            for (kind, key), number in new:
                if kind not in parts:
                    root = self._tree(kind)
                    parts[kind] = {attribute(e, "id"): e for e in root} if root is not None else {}
                note = parts[kind].get(key)
                words = " ".join(self._flat(note).split()) if note is not None else ""
                if words:
                    self.lines.add(f"[{number}] {words}")

    def _tree(self, kind: str) -> Element | None:
        names = self._relations.of_kind(kind)
        return self._read(names[0]) if names else None

    def _read(self, name: str) -> Element | None:
        entry = self._package.find(name)
        if entry is None:
            return None
        part = self._package.read(entry, self._context, SMALL)
        if entry.name.rpartition("/")[2].startswith(("footnotes", "endnotes", "comments", "header", "footer")):
            self.notes_packed += part.packed
        self.problem = self.problem or part.problem
        return parse_xml(part.data)

    def _block(self, block: Element) -> None:
        name = local(block)
        if name == "p":
            self._paragraph(block)
        elif name == "tbl":
            self._table(block)
        elif name == "AlternateContent":
            self._blocks(_choice(block))
        elif name in _WRAPS:
            self._blocks(block)

    def _blocks(self, parent: Element) -> None:
        for block in parent:
            self._block(block)

    def _paragraph(self, paragraph: Element) -> None:
        outer, self._after = self._after, []
        label = self._lists.label(paragraph)
        out: list[str] = []
        self._inline(paragraph, out)
        text = "".join(out).rstrip()
        self.lines.add(f"{label} {text}" if label and text else text, tight=bool(label))
        boxes, self._after = self._after, outer
        for box in boxes:
            self._blocks(box)

    def _table(self, table: Element) -> None:
        for row in _inside(table, "tr"):
            cells = list(_inside(row, "tc"))
            if len(cells) == 1:
                self._blocks(cells[0])  # a frame around text rather than a table
            else:
                self.lines.add("\t".join(self._cell(cell) for cell in cells).rstrip("\t"), tight=True)

    def _cell(self, cell: Element) -> str:
        return " ".join(self._flat(cell).split())

    def _flat(self, parent: Element) -> str:
        """All that a block holds, as one text."""
        inner = _Flat(self)
        try:
            inner.read(parent)
        except RecursionError:
            self.problem = Refused("bomb", "a block nested too deep")
        return " ".join(inner.words)

    def inline(self, element: Element, out: list[str]) -> list[Element]:
        """The text of a paragraph, and the boxes in it."""
        outer, self._after = self._after, []
        self._inline(element, out)
        boxes, self._after = self._after, outer
        return boxes

    def label(self, paragraph: Element) -> str:
        return self._lists.label(paragraph)

    def _inline(self, parent: Element, out: list[str]) -> None:
        for child in parent:
            name = local(child)
            if name == "t":
                out.append(child.text or "")
            elif name in _BREAKS:
                out.append(_BREAKS[name])
            elif name == "sym":
                out.append(_symbol(attribute(child, "char")))
            elif name in _NOTES:
                number = self._notes.setdefault((_NOTES[name], attribute(child, "id")), len(self._notes) + 1)
                out.append(f"[{number}]")
            elif name == "txbxContent":
                self._after.append(child)
            elif name == "relIds":
                self._diagram(child)
            elif name == "AlternateContent":
                self._inline(_choice(child), out)
            elif name == "textpath":
                out.append(attribute(child, "string"))
            elif name == "rt":
                ruby: list[str] = []
                self._inline(child, ruby)
                out.append(f"({''.join(ruby)})")
            elif name and name not in _LEFT_OUT:
                self._inline(child, out)

    def _diagram(self, element: Element) -> None:
        name = self._relations.target(related(element, "dm"))
        root = self._read(name) if name not in self._diagrams else None
        self._diagrams.add(name)
        if root is not None:
            self._after.extend(e for e in root.iter() if local(e) == "t" and local(e.getparent()) == "pt")


class _Flat:
    """The words of nested blocks, in order."""

    def __init__(self, text: _Text) -> None:
        self._text = text
        self.words: list[str] = []

    def read(self, parent: Element) -> None:
        for block in parent:
            name = local(block)
            if name == "p":
                out: list[str] = []
                label = self._text.label(block)
                boxes = self._text.inline(block, out)
                words = "".join(out).strip()
                self.words.append(f"{label} {words}" if label and words else words)
                for box in boxes:
                    self.read(box)
            elif name in ("tbl", "tr", "tc") or name in _WRAPS:
                self.read(_choice(block) if name == "AlternateContent" else block)


def _inside(parent: Element, wanted: str) -> Iterator[Element]:
    """The rows of a table or the cells of a row, also when content controls or insertions are around them."""
    for child in parent:
        name = local(child)
        if name == wanted:
            if wanted != "tr" or not any(local(e) == "del" for p in child if local(p) == "trPr" for e in p):
                yield child
        elif name in _WRAPS:
            yield from _inside(_choice(child) if name == "AlternateContent" else child, wanted)


def _choice(element: Element) -> Element:
    """Of alternatives that say the same for newer and older readers, the first."""
    children = [child for child in element if local(child) in ("Choice", "Fallback")]
    return next((child for child in children if local(child) == "Choice"), children[0] if children else ())


def _symbol(code: str) -> str:
    """A character of a symbol font. Those in the private area mean nothing without the font."""
    try:
        value = int(code, 16)
    except ValueError:
        return ""
    return "" if 0xE000 <= value <= 0xF8FF or 0xD800 <= value <= 0xDFFF or value > 0x10FFFF else chr(value)
