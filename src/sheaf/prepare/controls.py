"""A tokenizer's control tokens in a text: where a template wrote them, and how a message is kept from writing one.

A *guard* is a character that neither template nor conversation holds. It is put behind the first character of every
control token's literal inside a message, of what could begin one at the message's end (the template may put two texts
side by side), and before what could end one at its beginning (the template may write "<" + a name + ">"). What matches
a control token afterwards came from the template. Cost: one search, and a look-up for each length of a control token.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

Span = tuple[int, int]

_SIGN = re.compile(r"\W")


class Controls:
    """The tokenizer's control tokens: literals → ids. `search` finds the next one; the longest wins.

    before, after: those that take in the blanks on that side (lstrip, rstrip of the tokenizers library).
    """

    def __init__(
        self, ids: Mapping[str, int], before: frozenset[str] = frozenset(), after: frozenset[str] = frozenset()
    ) -> None:
        self.ids = dict(ids)
        literals = sorted((x for x in ids if x), key=lambda x: (-len(x), x))
        parts = [(r"\s*" if x in before else "") + re.escape(x) + (r"\s*" if x in after else "") for x in literals]
        self._find = re.compile("|".join(parts)) if parts else None
        self._whole = re.compile("|".join(map(re.escape, literals))) if parts else None
        self._begun = _by_length(x[:n] for x in literals for n in range(1, len(x)))
        self._rests = _by_length(x[n:] for x in literals for n in range(1, len(x)))
        # Words alone are not guarded ("user" in "<|user|>"): templates compare them.
        self._inner = {
            part
            for x in literals
            for a in range(1, len(x))
            for b in range(a + 1, len(x))
            if _SIGN.search(part := x[a:b])
        }

    def search(self, text: str, start: int, end: int) -> Span | None:
        found = self._find.search(text, start, end) if self._find else None
        return found.span() if found else None

    def all(self, text: str) -> list[Span]:
        return [found.span() for found in self._find.finditer(text)] if self._find else []

    def guard(self, text: str, mark: str) -> str:
        """The text of a message, which then holds no control token, whatever a template puts beside it."""
        if self._whole is None:
            return text
        places = {found.start() + 1 for found in self._whole.finditer(text)}
        head, tail = len(text) - len(text.lstrip()), len(text.rstrip())
        places.update(tail - n + 1 for n, some in self._begun.items() if n <= tail and text[tail - n : tail] in some)
        ends_one = any(text[head : head + n] in some for n, some in self._rests.items())
        if head < tail and (ends_one or text[head:tail] in self._inner):
            places.add(head)
        return _insert(text, mark, sorted(places)) if places else text


def _by_length(parts: Iterable[str]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for part in parts:
        found.setdefault(len(part), set()).add(part)
    return found


def _insert(text: str, mark: str, places: list[int]) -> str:
    return mark.join(text[a:b] for a, b in itertools.pairwise([0, *places, len(text)]))
