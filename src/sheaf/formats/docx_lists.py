"""The labels of lists in DOCX, counted as Word does: "1.", "2.3", "(b)", "iv.", or "•" (ECMA-376 part 1, 17.9).

A paragraph names a list and a level, itself or through its style; the list says format and text of each level. A level
starts anew when one above it moves on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sheaf.formats.office_xml import Element, attribute, local

LEVELS = 9
_PLACE = re.compile(r"%([1-9])")
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
          (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip


@dataclass(slots=True)
class _Level:
    start: int = 1
    format: str = "decimal"
    text: str = ""


@dataclass(slots=True)
class _List:
    levels: dict[int, _Level]
    counts: dict[int, int] = field(default_factory=dict)


class Lists:
    """styles, numbering: the roots of these parts, or None."""

    def __init__(self, styles: Element | None, numbering: Element | None) -> None:
        self._styles: dict[str, tuple[str, int]] = {}
        self._based: dict[str, str] = {}
        self._lists: dict[str, _List] = {}
        for style in styles if styles is not None else ():
            if local(style) == "style":
                self._style(style)
        if numbering is not None:
            self._numbering(numbering)

    def label(self, paragraph: Element) -> str:
        """What stands in front of the paragraph; counts it."""
        properties = _child(paragraph, "pPr")
        if properties is None or not self._lists:
            return ""
        number, depth = self._place(properties)
        found = self._lists.get(number)
        if found is None or depth not in found.levels:
            return ""
        counts = found.counts
        counts[depth] = counts.get(depth, found.levels[depth].start - 1) + 1
        for deeper in [level for level in counts if level > depth]:
            del counts[deeper]
        level = found.levels[depth]
        if level.format == "bullet":
            return "•"
        if level.format == "none":
            return ""

        def value(place: re.Match[str]) -> str:
            at = int(place[1]) - 1
            its = found.levels.get(at, level)
            return written(counts.get(at, its.start), its.format)

        return _PLACE.sub(value, level.text)

    def _place(self, properties: Element) -> tuple[str, int]:
        """(list, level) of a paragraph: its own, else its style's or that of a style it is based on."""
        style = _value(_child(properties, "pStyle"))
        number, depth = "", -1
        for _ in range(20):
            if style not in self._styles and style not in self._based:
                break
            if style in self._styles:
                number, depth = self._styles[style]
                break
            style = self._based[style]
        own = _child(properties, "numPr")
        if own is not None:
            number = _value(_child(own, "numId")) or number
            depth = _integer(_value(_child(own, "ilvl")), max(depth, 0))
        return number, max(depth, 0)

    def _style(self, style: Element) -> None:
        name = attribute(style, "styleId")
        based = _child(style, "basedOn")
        if based is not None:
            self._based[name] = _value(based)
        properties = _child(style, "pPr")
        place = _child(properties, "numPr") if properties is not None else None
        if place is not None:
            self._styles[name] = (_value(_child(place, "numId")), _integer(_value(_child(place, "ilvl")), 0))

    def _numbering(self, root: Element) -> None:
        abstract = {attribute(e, "abstractNumId"): _levels(e) for e in root if local(e) == "abstractNum"}
        shared: dict[str, dict[int, int]] = {}
        for number in root:
            if local(number) != "num":
                continue
            base = _value(_child(number, "abstractNumId"))
            levels = dict(abstract.get(base, {}))
            restarts = False
            for change in number:
                if local(change) == "lvlOverride":
                    restarts = True
                    self._override(levels, change)
            counts = {} if restarts else shared.setdefault(base, {})  # lists of one kind go on counting
            self._lists[attribute(number, "numId")] = _List(levels, counts)

    def _override(self, levels: dict[int, _Level], change: Element) -> None:
        depth = _integer(attribute(change, "ilvl"), 0)
        level = _child(change, "lvl")
        if level is not None:
            levels[depth] = _level(level)
        start = _child(change, "startOverride")
        if start is not None:
            old = levels.get(depth, _Level())
            levels[depth] = _Level(_integer(_value(start), 1), old.format, old.text)


def written(number: int, format: str) -> str:
    """A number as Word writes it: decimal for the formats of scripts that are not here."""
    if format in ("lowerLetter", "upperLetter") and 0 < number <= 26 * 40:
        letter = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)
        return letter.upper() if format == "upperLetter" else letter
    if format in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        roman = ""
        for value, sign in _ROMAN:
            roman += sign * (number // value)
            number %= value
        return roman.upper() if format == "upperRoman" else roman
    return f"{number:02d}" if format == "decimalZero" else str(number)


def _levels(abstract: Element) -> dict[int, _Level]:
    found = {_integer(attribute(e, "ilvl"), 0): _level(e) for e in abstract if local(e) == "lvl"}
    return {depth: level for depth, level in found.items() if 0 <= depth < LEVELS}


def _level(element: Element) -> _Level:
    return _Level(
        _integer(_value(_child(element, "start")), 1),
        _value(_child(element, "numFmt")) or "decimal",
        _value(_child(element, "lvlText"))[:100],
    )


def _child(element: Element, name: str) -> Element | None:
    return next((child for child in element if local(child) == name), None)


def _value(element: Element | None) -> str:
    return attribute(element, "val") if element is not None else ""


def _integer(value: str, default: int) -> int:
    return int(value) if value.lstrip("-").isdecimal() and len(value) < 10 else default
