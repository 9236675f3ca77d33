"""PPTX (PresentationML, ECMA-376 part 1): a record a slide, {"slide": n}, in the order in which they are shown.

A slide's text is that of its shapes, in their order, an empty line between two; rows of tables are lines with tabs;
then the texts of diagrams, the speaker's notes and comments. Left out are the date, footer and number that repeat on
every slide, and masters and layouts; a slide without text is structure. Embedded files are members; pictures, charts
and themes are structure, and linked files are never opened. A slide that cannot be read costs itself alone. Holds one
slide at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sheaf.formats.office_text import embedded, files_under
from sheaf.formats.office_xml import (
    SMALL,
    Element,
    Relations,
    attribute,
    core_meta,
    local,
    main_part,
    parse_checked,
    related,
)
from sheaf.formats.office_xml import parse as parse_part
from sheaf.formats.package import Package, open_package
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream

_REPEATED = frozenset(("dt", "ftr", "sldNum", "hdr", "sldImg"))
_NUMBER = re.compile(r"(\d+)\.xml$")


def parse(stream: Stream, context: Context) -> Pieces:
    package = open_package(stream, context)
    meta = core_meta(package, context) or None
    empty = True
    for number, name in enumerate(_slides(package, context), 1):
        locator = {"slide": number}
        if number > context.limits.pages:
            raise Refused("bomb", f"more than {context.limits.pages:,} slides")
        slide = _Slide(package, context, name)
        text = slide.text()
        empty = empty and not text and not slide.problem
        if text:
            weight = max(0, slide.packed - 1) if slide.problem else slide.packed
            gaps = slide.problem is not None
            yield Record(text, 0, package.size, "utf-8", meta, weight, gaps, locator)
        if slide.problem:
            weight = min(slide.packed, 1) if text else slide.packed
            yield Region(0, package.size, slide.problem.reason, slide.problem.detail, weight, locator)
    inner = embedded(package, context, files_under(package, "ppt/embeddings"))
    if empty and not inner:
        yield Record("", 0, package.size, "utf-8", meta, 0)
    yield from inner


def _slides(package: Package, context: Context) -> list[str]:
    """The names of the slides' parts. Without a list of them that can be read: all, by their numbers."""
    presentation = main_part(package, context, "ppt/presentation.xml")
    relations = Relations(package, presentation.name, context)
    root = parse_part(package.read(presentation, context, SMALL).data)
    listed = [relations.target(related(e)) for e in root.iter() if local(e) == "sldId"] if root is not None else []
    named = list(dict.fromkeys(name for name in listed if name))
    if named:
        return named
    found = [(int(n[1]), e.name) for e in package.under("ppt/slides") if (n := _NUMBER.search(e.name))]
    return [name for _, name in sorted(found)]


class _Slide:
    """packed: compressed bytes of what its text is made of. problem: why it is not all."""

    def __init__(self, package: Package, context: Context, name: str) -> None:
        self._package, self._context, self._name = package, context, name
        self._relations = Relations(package, name, context)
        self.packed = 0
        self.problem: Refused | None = None

    def text(self) -> str:
        try:
            groups = [*self._shapes(self._read(self._name))]
            for kind in ("notesSlide", "comments"):
                for name in self._relations.of_kind(kind):
                    groups += self._shapes(self._read(name))
        except RecursionError:
            self.problem = Refused("bomb", "shapes nested too deep")
            return ""
        return "\n\n".join(group for group in groups if group.strip())

    def _read(self, name: str) -> Element | None:
        entry = self._package.find(name)
        if entry is None:
            self.problem = Refused("truncated" if not self._package.whole else "corrupt", f"it has no {name[:100]}")
            return None
        part = self._package.read(entry, self._context, SMALL)
        self.packed += part.packed
        root, problem = parse_checked(part.data)
        self.problem = self.problem or part.problem or problem
        return root

    def _shapes(self, parent: Element | None) -> Iterator[str]:
        """The text of each shape below an element."""
        for child in parent if parent is not None else ():
            name = local(child)
            if name == "txBody":
                yield "\n".join(_paragraph(p) for p in child if local(p) == "p").rstrip()
            elif name == "tbl":
                rows = [
                    "\t".join(_cell(cell) for cell in row if local(cell) == "tc") for row in child if local(row) == "tr"
                ]
                yield "\n".join(rows)
            elif name == "text":
                yield child.text or ""
            elif name == "relIds":
                yield self._diagram(related(child, "dm"))
            elif name == "AlternateContent":
                yield from self._shapes(next((e for e in child if local(e) in ("Choice", "Fallback")), None))
            elif name and not (name == "sp" and _placeholder(child) in _REPEATED):
                yield from self._shapes(child)

    def _diagram(self, number: str) -> str:
        name = self._relations.target(number)
        root = self._read(name) if name else None
        points = [e for e in root.iter() if local(e) == "pt"] if root is not None else []
        texts = ("\n".join(_paragraph(p) for p in point.iter() if local(p) == "p") for point in points)
        return "\n".join(text for text in texts if text.strip())


def _cell(cell: Element) -> str:
    return " ".join(" ".join(_paragraph(p) for p in cell.iter() if local(p) == "p").split())


def _placeholder(shape: Element) -> str:
    return next((attribute(e, "type") for e in shape.iter() if local(e) == "ph"), "")


def _paragraph(paragraph: Element) -> str:
    out: list[str] = []
    for element in paragraph.iter():
        name = local(element)
        if name == "t":
            out.append(element.text or "")
        elif name == "br":
            out.append("\n")
        elif name == "tab" and local(element.getparent()) != "tabLst":
            out.append("\t")
    return "".join(out)
