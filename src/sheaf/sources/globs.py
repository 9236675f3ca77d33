"""Which paths a source's `include` and `exclude` patterns mean.

A pattern is matched against the whole path relative to the root: `*` and `?` stay inside one name, `[a-z]` and `[!a-z]`
are one character of a name, `**` as a whole part is any number of folders, none included. `folder/` means all under it.
This is what pathlib.PurePath.full_match does from Python 3.13 on. Cost: one regular expression match a path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """Paths that match an include pattern and no exclude pattern."""

    included: re.Pattern[str]
    excluded: re.Pattern[str]
    pruned: re.Pattern[str]

    @staticmethod
    def of(include: Sequence[str], exclude: Sequence[str]) -> Selection:
        tops = [p.removesuffix("/").removesuffix("/**") for p in exclude if p.endswith(("/", "/**"))]
        return Selection(compile_globs(include), compile_globs(exclude), compile_globs(tops))

    def wants(self, path: str) -> bool:
        return self.included.fullmatch(path) is not None and self.excluded.fullmatch(path) is None

    def prunes(self, folder: str) -> bool:
        """Whether all that could lie in the folder is excluded, so that it need not be looked at."""
        return self.pruned.fullmatch(folder) is not None or self.excluded.fullmatch(folder) is not None


def compile_globs(patterns: Sequence[str]) -> re.Pattern[str]:
    """One expression whose fullmatch says whether any of the patterns matches; no pattern matches nothing."""
    return re.compile("|".join(f"(?:{_expression(p)})" for p in patterns) or r"(?!)", re.DOTALL)


def _expression(pattern: str) -> str:
    while pattern.startswith("./"):
        pattern = pattern[2:]
    if pattern.endswith("/"):
        pattern += "**"
    parts = re.sub(r"(?<![^/])\*\*(/\*\*)+(?![^/])", "**", pattern).split("/")  # a/**/**/b is a/**/b
    found: list[str] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            found.append(".*" if last else "(?:.*/)?")
        else:
            found.append(_name(part) + ("" if last else "/"))
    return "".join(found)


def _name(part: str) -> str:
    """One part of a path. Stars in a row are one star: more would cost exponential time on a hostile name."""
    found, i = "", 0
    while i < len(part):
        character = part[i]
        i += 1
        if character == "*":
            if part[i - 2 : i - 1] != "*" or i < 2:
                found += "[^/]*"
        elif character == "?":
            found += "[^/]"
        elif character == "[" and (end := part.find("]", i + 1 + part[i:].startswith("!"))) > 0:
            found += _class(part[i:end])
            i = end + 1
        else:
            found += re.escape(character)
    return found


def _class(inside: str) -> str:
    negated = inside.startswith("!")
    body = inside[negated:]
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", body)
    try:
        re.compile(f"[{escaped}]")
    except re.error:  # a range that runs backwards holds no character
        return "[^/]" if negated else r"(?!)"
    return f"(?!/)[{'^' if negated else ''}{escaped}]"
