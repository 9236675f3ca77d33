"""Lines of text gathered from a document, with a count, so that a record can say which paragraphs it holds."""

from __future__ import annotations

from sheaf.formats.package import Package
from sheaf.formats.piece import Context, Member


class Lines:
    """count: paragraphs and rows of tables so far, in all; characters: since the last `take`."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._tight = False
        self.count = self.characters = 0

    def add(self, text: str, tight: bool = False) -> None:
        """A paragraph. tight: one of a list or table, with no empty line between it and the one before."""
        if not text or text.isspace():
            return
        gap = "" if not self._lines else "\n" if tight and self._tight else "\n\n"
        self._lines.append(gap + text)
        self.characters += len(text) + len(gap)
        self._tight = tight
        self.count += 1

    def take(self) -> str:
        """The text so far, which is then forgotten."""
        text = "".join(self._lines)
        self._lines, self.characters, self._tight = [], 0, False
        return text


def place(first: int, last: int) -> dict[str, list[int]]:
    """The locator of paragraphs."""
    return {"paragraphs": [first, max(first, last)]}


def embedded(package: Package, context: Context, names: list[str]) -> list[Member]:
    """The parts with these names as members, each once."""
    entries = dict.fromkeys(entry for entry in map(package.find, names) if entry is not None)
    return [
        Member(entry.name, package.stream(entry, context), weight=max(entry.packed, 0), end=package.size)
        for entry in entries
    ]


def files_under(package: Package, folder: str) -> list[str]:
    return [entry.name for entry in package.under(folder) if "/_rels/" not in entry.name]
