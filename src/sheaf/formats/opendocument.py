"""OpenDocument (ISO/IEC 26300) text, presentations and drawings, and the OpenOffice.org 1 files before it.

A text is one record, {"paragraphs": [first, last]}, set out as that of a DOCX: lists and tables as lines, notes and
comments behind the text where [n] points to them, deleted text left out. Presentations give a record a slide,
{"slide": n}, with its notes; drawings one a page, {"page": n}. A formula is its text as StarMath. Everything is in
content.xml, which is streamed; pictures, styles and settings are structure, and linked files are never opened. OLE
objects are members.
"""

from __future__ import annotations

from collections.abc import Iterator

from sheaf.formats.docx_lists import written
from sheaf.formats.office_text import Lines, embedded, place
from sheaf.formats.office_xml import SMALL, Blocks, Element, attribute, core_meta, local
from sheaf.formats.office_xml import parse as parse_xml
from sheaf.formats.package import Entry, Package, open_package
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream

_HOMES = frozenset(("text", "presentation", "drawing", "spreadsheet", "image", "chart"))
_OLD_HOMES = frozenset(("body",))
_SKIPPED = frozenset(
    ("tracked-changes", "forms", "script", "title", "desc", "event-listeners", "binary-data", "settings")
)
_ROWS = frozenset(("table-header-rows", "table-rows", "table-row-group"))
_FORMATS = {"1": "decimal", "a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
_BOXES = frozenset(
    ("frame", "text-box", "custom-shape", "rect", "g", "line", "ellipse", "polygon", "path", "connector")
)


def parse(stream: Stream, context: Context) -> Pieces:
    package = open_package(stream, context)
    if b"encryption-data" in package.head("META-INF/manifest.xml", 8 << 20):
        raise Refused("encrypted", "a password is needed")
    content = package.find("content.xml")
    if content is None:
        raise Refused("truncated" if not package.whole else "corrupt", "it has no content.xml")
    meta = core_meta(package, context) or None
    if context.kind.endswith(("formula", "formula-template", "math")):
        yield _formula(package, content, context, meta)
    else:
        yield from _pieces(package, content, context, meta)
    objects = [entry.name for entry in package.entries if entry.name.startswith("Object ") and "/" not in entry.name]
    yield from embedded(package, context, objects)


def _pieces(package: Package, content: Entry, context: Context, meta: dict[str, str] | None) -> Pieces:
    old = context.kind.startswith("application/vnd.sun.")
    within, homes = ("document-content", _OLD_HOMES) if old else ("body", _HOMES)
    blocks = Blocks(package, content, context, within, homes, keep=frozenset(("list-style",)))
    page = "slide" if "presentation" in context.kind or "impress" in context.kind else "page"
    text = _Text(package, context, blocks)
    limit = context.limits.record_bytes // 4  # characters: at most so many bytes
    first, pages, charged = 1, 0, 0
    for block in blocks:
        paged = local(block) == "page"
        pages += paged
        if pages > context.limits.pages:
            raise Refused("bomb", f"more than {context.limits.pages:,} slides")
        text.block(block)
        if paged:
            text.add_notes()
        if text.lines.characters > (0 if paged else limit):
            locator = {page: pages} if paged else place(first, text.lines.count)
            weight = max(0, blocks.taken - charged)
            yield Record(text.lines.take(), 0, package.size, "utf-8", meta, weight, locator=locator)
            first, charged = text.lines.count + 1, charged + weight
    text.add_notes()
    rest = max(0, max(blocks.taken, content.packed) - charged)
    problem = blocks.problem or text.problem
    lost = min(rest, max(1, content.packed - blocks.taken)) if problem else 0
    if text.lines.characters or not (charged or problem):
        last = place(first, text.lines.count)
        yield Record(text.lines.take(), 0, package.size, "utf-8", meta, rest - lost, problem is not None, last)
    if problem:
        yield Region(0, package.size, problem.reason, problem.detail, lost)


def _formula(package: Package, content: Entry, context: Context, meta: dict[str, str] | None) -> Record | Region:
    part = package.read(content, context, SMALL)
    root = parse_xml(part.data)
    if root is None:
        refused = part.problem or Refused("corrupt", "content.xml is not XML")
        return Region(0, package.size, refused.reason, refused.detail, part.packed)
    notes = [e.text or "" for e in root.iter() if local(e) == "annotation"]
    text = "\n".join(notes) or " ".join(" ".join(root.itertext()).split())
    return Record(text, 0, package.size, "utf-8", meta, part.packed, part.problem is not None, {"paragraphs": [1, 1]})


class _Text:
    """Lines of text out of blocks of XML."""

    def __init__(self, package: Package, context: Context, blocks: Blocks) -> None:
        self._blocks_of, self._notes = blocks, list[Element]()
        self._numbered = 0
        self._boxes: list[Element] = []
        self._styles = _Styles(package, context, blocks)
        self.lines = Lines()
        self.problem: Refused | None = None

    def block(self, block: Element) -> None:
        """A child of the document's body."""
        try:
            self._block(block)
        except RecursionError:
            self.problem = Refused("bomb", "a block nested too deep")

    def add_notes(self) -> None:
        """The notes since the last call."""
        while self._notes:
            notes, self._notes = self._notes, []
            start = self._numbered - len(notes) + 1
            for number, note in enumerate(notes, start):
                words = " ".join(" ".join(_paragraphs(note)).split())
                if words:
                    self.lines.add(f"[{number}] {words}")

    def _block(self, block: Element) -> None:
        name = local(block)
        if name in ("p", "h"):
            self._paragraph(block, "")
        elif name in ("list", "ordered-list", "unordered-list"):
            self._list(block, [], attribute(block, "style-name"))
        elif name == "table":
            self._table(block)
        elif name == "annotation":
            self._note(block)
        elif name and name not in _SKIPPED:
            self._blocks(block)

    def _blocks(self, parent: Element) -> None:
        for block in parent:
            self._block(block)

    def _paragraph(self, paragraph: Element, label: str) -> None:
        outer, self._boxes = self._boxes, []
        text = "".join(self._inline(paragraph)).rstrip()
        self.lines.add(f"{label} {text}" if label and text.strip() else text, tight=bool(label))
        boxes, self._boxes = self._boxes, outer
        for box in boxes:
            self._blocks(box)

    def _list(self, element: Element, counts: list[int], style: str) -> None:
        depth = len(counts)
        counts = [*counts, 0]
        for item in element:
            if local(item) not in ("list-item", "list-header"):
                continue
            if local(item) == "list-item":
                start = attribute(item, "start-value")
                counts[depth] = int(start) if start.isdecimal() and len(start) < 10 else counts[depth] + 1
            label = self._styles.label(style, counts) if local(item) == "list-item" else ""
            for block in item:
                if local(block) in ("p", "h"):
                    self._paragraph(block, label)
                    label = ""
                elif local(block) in ("list", "ordered-list", "unordered-list"):
                    self._list(block, counts, attribute(block, "style-name") or style)
                else:
                    self._block(block)

    def _table(self, table: Element) -> None:
        for row in _rows(table):
            cells = [cell for cell in row if local(cell) in ("table-cell", "covered-table-cell")]
            if len(cells) == 1:
                self._blocks(cells[0])  # a frame around text rather than a table
            else:
                self.lines.add("\t".join(self._cell(cell) for cell in cells).rstrip("\t"), tight=True)

    def _cell(self, cell: Element) -> str:
        outer, self._boxes = self._boxes, []
        words: list[str] = []
        waiting = [cell]
        while waiting:
            for paragraph in _leaves(waiting.pop(0)):
                words.append("".join(self._inline(paragraph)))
            waiting += self._boxes
            self._boxes = []
        self._boxes = outer
        return " ".join(" ".join(words).split())

    def _inline(self, element: Element) -> Iterator[str]:
        if element.text:
            yield element.text
        for child in element:
            name = local(child)
            if name == "s":
                count = attribute(child, "c")
                yield " " * (min(int(count), 1000) if count.isdecimal() and len(count) < 6 else 1)
            elif name in ("tab", "tab-stop"):
                yield "\t"
            elif name == "line-break":
                yield "\n"
            elif name in ("note", "footnote", "endnote", "annotation"):
                self._note(child)
                yield f"[{self._numbered}]"
            elif name in _BOXES:
                self._boxes.append(child)
            elif name == "ruby-text":
                yield f"({''.join(self._inline(child))})"
            elif name and name not in _SKIPPED:
                yield from self._inline(child)
            if child.tail:
                yield child.tail

    def _note(self, note: Element) -> None:
        self._notes.append(note)
        self._numbered += 1


class _Styles:
    """How lists are labelled: the list styles of the document, by name and level."""

    def __init__(self, package: Package, context: Context, blocks: Blocks) -> None:
        self._blocks = blocks
        self._known: dict[str, dict[int, Element]] = {}
        self._seen = 0
        entry = package.find("styles.xml")
        root = parse_xml(package.read(entry, context, SMALL).data) if entry else None
        for style in root.iter() if root is not None else ():
            if local(style) == "list-style":
                self._add(style)

    def label(self, style: str, counts: list[int]) -> str:
        for element in self._blocks.kept[self._seen :]:
            self._add(element)
        self._seen = len(self._blocks.kept)
        depth = len(counts)
        level = self._known.get(style, {}).get(depth)
        format = attribute(level, "num-format") if level is not None and "number" in local(level) else ""
        if format not in _FORMATS:
            return "" if level is not None and "number" in local(level) else "•"
        shown = attribute(level, "display-levels")
        first = depth - min(depth, int(shown)) if shown.isdecimal() and len(shown) < 3 else depth - 1
        number = ".".join(written(count, _FORMATS[format]) for count in counts[first:])
        return f"{attribute(level, 'num-prefix')}{number}{attribute(level, 'num-suffix')}".strip()[:100]

    def _add(self, style: Element) -> None:
        levels = {attribute(level, "level"): level for level in style if local(level).startswith("list-level-style")}
        self._known[attribute(style, "name")] = {int(n): e for n, e in levels.items() if n.isdecimal() and len(n) < 4}


def _rows(table: Element) -> Iterator[Element]:
    for child in table:
        if local(child) == "table-row":
            yield child
        elif local(child) in _ROWS:
            yield from _rows(child)


def _leaves(element: Element) -> Iterator[Element]:
    """The paragraphs below an element."""
    for child in element:
        if local(child) in ("p", "h"):
            yield child
        elif local(child) and local(child) not in _SKIPPED:
            yield from _leaves(child)


def _paragraphs(note: Element) -> Iterator[str]:
    """The texts of a note's paragraphs, without its mark, author and date."""
    for paragraph in note.iter():
        if local(paragraph) in ("p", "h"):
            yield "".join(paragraph.itertext())
