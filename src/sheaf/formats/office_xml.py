"""The XML inside office documents: parsed as it is expanded, block by block, and never trusted.

lxml without DTD, entities and network, and without huge trees: libxml2 then bounds depth and text sizes. Entities stay
unresolved, so nothing is expanded and no address is opened. Broken XML is read as far as libxml2 recovers it, and the
caller learns why. Memory: one block (a paragraph, a table) at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from lxml import etree

from sheaf.formats.package import BLOCK, Entry, Package
from sheaf.formats.piece import Context, Refused
from sheaf.formats.stream import progress

Element = Any  # lxml is not typed
RELATIONSHIP = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
RELATIONSHIP_STRICT = "{http://purl.oclc.org/ooxml/officeDocument/relationships}"
_SAFE = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
CHUNK = 8192  # small, so that what a block took of the file is known well
SMALL = 32 << 20  # styles, relationships, slides: parts that are held whole


def local(element: Element) -> str:
    """The name without its namespace; "" for comments, instructions and entities."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Element, name: str) -> str:
    """An attribute by its local name, in whatever namespace: transitional and strict documents differ only there."""
    value = element.get(name)
    if value is None:
        value = next((v for k, v in element.attrib.items() if k.rpartition("}")[2] == name), "")
    return value


def related(element: Element, name: str = "id") -> str:
    """The relationship that an element names."""
    return element.get(RELATIONSHIP + name) or element.get(RELATIONSHIP_STRICT + name) or ""


def parse(data: bytes) -> Element | None:
    """The root of a small part, as far as it can be read; None if there is none."""
    return parse_checked(data)[0]


def parse_checked(data: bytes) -> tuple[Element | None, Refused | None]:
    """The root as far as it can be read, and why it is not all."""
    parser = etree.XMLParser(recover=True, **_SAFE)
    try:
        root = etree.parse(io.BytesIO(data), parser).getroot()
    except (etree.XMLSyntaxError, AssertionError, ValueError, LookupError) as error:
        return None, Refused("corrupt", f"XML: {error}"[:200])
    return root, _problem(parser.error_log)


def _problem(log: list[Any]) -> Refused | None:
    errors = [entry for entry in log if entry.level > 1]
    return Refused("corrupt", f"XML: {errors[0].message}"[:200]) if errors else None


class Elements:
    """The elements of a part as it is expanded. tags: only those, such as "{*}row"; whoever takes one `forget`s it.

    problem: why it is not all. taken: compressed bytes used so far. largest: bytes of XML that one may have, 0: any.
    ends: tell of their ends only.
    """

    def __init__(
        self, package: Package, entry: Entry, context: Context, tags: tuple[str, ...] | None = None, largest: int = 0,
        *, ends: bool = False,
    ) -> None:  # fmt: skip
        self._stream = package.open(entry, context)
        self._tags, self._largest, self._size = tags, largest, 0
        self._events = ("end",) if ends else ("start", "end")
        self.problem: Refused | None = None

    @property
    def taken(self) -> int:
        return self._stream.taken

    def events(self) -> Iterator[tuple[str, Element]]:
        """("start" | "end", element)."""
        found = etree.iterparse(
            _File(self.read), events=self._events, tag=self._tags, recover=True, chunk_size=CHUNK, **_SAFE
        )
        try:
            for event, element in found:
                yield event, element
                self._size = 0
        except (etree.XMLSyntaxError, AssertionError, ValueError, LookupError) as error:
            self.problem = self.problem or Refused("corrupt", f"XML: {error}"[:200])
            return
        self.problem = self.problem or _problem(found.error_log)

    def read(self, n: int) -> bytes:
        """For the XML parser: what there is, then the end."""
        try:
            block = self._stream.read(min(n, BLOCK))
            self._size += len(block)
            progress(len(block))
            if 0 < self._largest < self._size:
                raise Refused("record-too-large", f"more than {self._largest >> 20} MB in one element")
            return block
        except Refused as refused:
            if refused.reason in ("bomb", "encrypted"):
                raise
            self.problem = self.problem or refused
            return b""


def forget(element: Element) -> None:
    """Free an element that was read, and what stands before it."""
    element.clear()
    parent = element.getparent()
    while element.getprevious() is not None:
        del parent[0]


class Blocks(Elements):
    """The children of the first element of a part that is called `within`/one of `homes`, one after another, each
    forgotten after its turn.

    home: the element's name, once it was met. kept: elements before it, of the names in `keep`.
    """

    def __init__(
        self, package: Package, entry: Entry, context: Context, within: str, homes: frozenset[str],
        keep: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        super().__init__(package, entry, context)
        self._within, self._homes, self._keep = within, homes, keep
        self.home = ""
        self.kept: list[Element] = []

    def __iter__(self) -> Iterator[Element]:
        home: Element | None = None
        for event, element in self.events():
            if event == "start":
                if home is None and local(element) in self._homes and self._inside(element):
                    home, self.home = element, local(element)
            elif home is None:
                if local(element) in self._keep:
                    self.kept.append(element)
            elif element.getparent() is home:
                yield element
                forget(element)

    def _inside(self, element: Element) -> bool:
        parent = element.getparent()
        return parent is not None and local(parent) == self._within


class _File:
    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


class Relations:
    """Which part a relationship of a part leads to. External targets are never followed."""

    def __init__(self, package: Package, part: str, context: Context) -> None:
        folder, _, name = part.rpartition("/")
        self._targets: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        entry = package.find(f"{folder}/_rels/{name}.rels" if folder else f"_rels/{name}.rels")
        root = parse(package.read(entry, context, SMALL).data) if entry else None
        for relation in root if root is not None else ():
            if local(relation) == "Relationship" and attribute(relation, "TargetMode").lower() != "external":
                number = attribute(relation, "Id")
                self._targets[number] = resolve(folder, attribute(relation, "Target"))
                self._kinds[number] = attribute(relation, "Type").rpartition("/")[2]

    def target(self, number: str) -> str:
        return self._targets.get(number, "")

    def kind(self, number: str) -> str:
        """The end of the relationship's type."""
        return self._kinds.get(number, "")

    def of_kind(self, kind: str) -> list[str]:
        """The targets of the relationships whose type ends with /kind."""
        return [self._targets[number] for number, its in self._kinds.items() if its == kind]


def resolve(folder: str, target: str) -> str:
    """A target relative to the folder of the part that names it, as a name inside the package."""
    steps = [] if target.startswith("/") else folder.split("/")
    for step in target.replace("\\", "/").split("/"):
        if step == "..":
            steps = steps[:-1]
        elif step not in ("", "."):
            steps.append(step)
    return "/".join(step for step in steps if step)


def main_part(package: Package, context: Context, default: str) -> Entry:
    """The part that the package's relationships call the document. Raises Refused("corrupt") if it is not there."""
    for target in [*Relations(package, "", context).of_kind("officeDocument"), default]:
        entry = package.find(target)
        if entry is not None:
            return entry
    raise Refused("truncated" if not package.whole else "corrupt", f"it has no {default}")


def core_meta(package: Package, context: Context) -> dict[str, str]:
    """Title, author and the like of docProps/core.xml or meta.xml."""
    meta: dict[str, str] = {}
    for part in ("docProps/core.xml", "meta.xml"):
        entry = package.find(part)
        root = parse(package.read(entry, context, SMALL).data) if entry else None
        for element in root.iter() if root is not None else ():
            name = _META.get(local(element))
            text = " ".join((element.text or "").split())
            if name and text:
                meta.setdefault(name, text[:1000])
    return meta


_META = {"title": "title", "subject": "subject", "creator": "author", "language": "language", "created": "date"}
