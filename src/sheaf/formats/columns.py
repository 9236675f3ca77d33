"""What the columns of sample rows hold: prose, messages, or neither; nested columns and JSON in cells included.

Prose is what reads as words: at least three of them, or six letters of a script that puts no blanks between words.
Addresses, dates, numbers, identifiers, paths and mail addresses are not. One pass over the sample; values longer than
4,000 characters are judged by their beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sheaf.formats.messages import as_list, from_json, looks_like_messages

Row = dict[str, Any]
MOST_COLUMNS = 500
DEPTH = 3
_GENERIC = frozenset({"text", "value", "content", "body", "data"})  # of a nested column, the name above says more
_WHEN = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b[\dT:.,+Z UTCGMampAPM-]*|(?:[A-Z][a-z]{2},? ){1,2}.*\d\d:\d\d.*")
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_LONGEST = 4000


@dataclass(slots=True)
class Column:
    """path: as a mapping names it. word: what it is about, in lower case: 'answers' for 'answers.text.0'.
    filled: rows in which it holds something; prose: those in which that reads as words; lists: those in which it
    is a list of objects, the first of which are `objects`. length: characters, those of unspaced scripts threefold."""

    path: str
    filled: int = 0
    prose: int = 0
    words: int = 0
    characters: int = 0
    length: int = 0
    lists: int = 0
    values: set[str] = field(default_factory=set[str])
    objects: list[Row] = field(default_factory=list[Row])

    @property
    def nested(self) -> bool:
        return "." in self.path

    @property
    def word(self) -> str:
        steps = [s for s in self.path.split(".") if not s.isdecimal()]
        while len(steps) > 1 and steps[-1].lower() in _GENERIC:
            steps.pop()
        return re.sub(r"[\s-]+", "_", steps[-1].strip().lower()) if steps else self.path

    @property
    def variety(self) -> float:
        """Different values among the filled ones."""
        return len(self.values) / max(self.filled, 1)

    def is_text(self) -> bool:
        """Most of what it holds reads as prose of some length, and does not repeat."""
        if self.filled == 0 or self.prose < 0.6 * self.filled:
            return False
        return self.length / self.filled >= 24 and (self.filled < 4 or self.variety >= 0.5)

    def is_asked(self) -> bool:
        """Words that somebody could say, however short: two on average, or some letters of an unspaced script."""
        return self.filled > 0 and (self.words >= 2 * self.filled or self.prose >= 0.5 * self.filled)


def survey(rows: Sequence[Row]) -> dict[str, Column]:
    """The columns of the rows by path, in the order in which they first appear."""
    found: dict[str, Column] = {}
    for row in rows:
        for path, value in _flat(row, "", 0):
            if path not in found:
                if len(found) >= MOST_COLUMNS:
                    continue
                found[path] = Column(path)
            _note(found[path], value)
    return found


def is_prose(text: str) -> bool:
    text = text.strip()
    if _WHEN.fullmatch(text[:100]):
        return False
    if len(text.split(None, 3)) >= 3:
        return any(c.isalpha() for c in text[:200])
    return len(_UNSPACED.findall(text[:200])) >= 6


def _flat(row: Row, above: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if above and ("." in name or not name):
            continue  # no path leads there
        path = f"{above}{name}"
        listed = as_list(value)
        if isinstance(value, dict) and listed is not None and not looks_like_messages(listed):
            listed = None
        if listed and all(isinstance(one, dict) for one in listed):
            yield path, listed
        elif listed and isinstance(value, list):
            yield f"{path}.0", listed[0]
        inner = from_json(value) if isinstance(value, str) else value
        if isinstance(inner, dict):
            if depth < DEPTH:
                yield from _flat(inner, f"{path}.", depth + 1)
        elif listed is None:
            yield path, value


def _note(column: Column, value: Any) -> None:
    if value is None or value == "" or value == []:
        return
    column.filled += 1
    if isinstance(value, list):
        listed: list[Any] = value
        column.lists += 1
        column.objects += [one for one in listed[:8] if isinstance(one, dict)]
        return
    text = value if isinstance(value, str) else str(value)
    column.characters += len(text)
    column.values.add(text[:200])
    if isinstance(value, str):
        column.words += len(text[:_LONGEST].split())
        column.length += len(text) + (0 if text.isascii() else 2 * len(_UNSPACED.findall(text[:_LONGEST])))
        column.prose += is_prose(text[:_LONGEST])
