"""The path of a member: names joined by "!/", outermost first, such that no two members of an item have one path.

A name is data and may hold anything. "!/" inside a name becomes "%21/", and a "%" is written "%25" only where it would
read as such an escape, so ordinary names stay as they are. A name that was there before is numbered: a.txt, a.txt#2, …
"""

from __future__ import annotations

import re

_ESCAPED = re.compile(r"%(?=(?:25)*21/)")


def join(path: str, within: str, name: str, taken: dict[str, int]) -> str:
    """The path of the next member. taken: what was given in this container so far; starts empty."""
    step = _escape(name) or "unnamed"
    if within:
        step = f"{_escape(within)}!/{step}"
    label = _free(step, taken)
    return f"{path}!/{label}" if path else label


def _escape(name: str) -> str:
    name = name.encode("utf-8", "replace").decode()
    return _ESCAPED.sub("%25", name).replace("!/", "%21/") if "!/" in name or "%" in name else name


def _free(step: str, taken: dict[str, int]) -> str:
    """The step, or the first of step#2, step#3, … that is not taken. taken[s] is the last number that s was given."""
    number = taken.get(step, 0) + 1
    label = step if number == 1 else f"{step}#{number}"
    while label in taken and number > 1:
        number += 1
        label = f"{step}#{number}"
    taken[step] = number
    taken.setdefault(label, 1)
    return label
