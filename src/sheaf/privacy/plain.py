"""The same findings without a kernel: every pattern tried over the whole text, some 3 MB/s.

For messages, which are short, and must be told also where nothing can be compiled. `find` is held to this in the tests.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from sheaf.privacy.rules import RULES

Span = tuple[int, int, str]  # start and end in bytes, kind
_ADDRESSES = ("email", "phone", "ip")


def spans_everywhere(text: bytes) -> list[Span]:
    """The findings in a text, by place."""
    found: list[tuple[int, int, int]] = []
    for number, rule in enumerate(RULES):
        group = "value" if "value" in rule.pattern.groupindex else 0
        found += [(number, *m.span(group)) for m in rule.pattern.finditer(text) if rule.holds(m[group])]
    return apart(found)


def without_secrets(text: str) -> str:
    """A message with what gives access or money masked; addresses stay, for they say where something went wrong."""
    raw = text.encode("utf-8", "surrogatepass")
    parts: list[bytes] = []
    at = 0
    for start, end, kind in spans_everywhere(raw):
        if kind not in _ADDRESSES:
            parts += [raw[at:start], f"[{kind}]".encode()]
            at = end
    return b"".join([*parts, raw[at:]]).decode("utf-8", "surrogatepass")


def apart(found: Iterable[tuple[int, int, int]]) -> list[Span]:
    """Findings of (rule, start, end) that do not overlap, by place: the earlier rule's stays."""
    starts: list[int] = []
    kept: list[Span] = []
    for number, start, end in sorted(found):
        at = bisect_left(starts, start)
        if (at == 0 or kept[at - 1][1] <= start) and (at == len(kept) or end <= starts[at]):
            starts.insert(at, start)
            kept.insert(at, (start, end, RULES[number].kind))
    return kept
