"""Parameters by name: which of them stand still, and how fast the others learn.

A pattern is a glob over the published parameter names ("model.layers.0.*"); `*` crosses dots. For the rates the first
pattern that matches a name counts, in the recipe's order, so exceptions go first. A pattern that decides nothing is an
error: a run that trains what its recipe says to freeze would look like any other.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from sheaf.errors import RecipeError


def frozen(names: Sequence[str], patterns: Iterable[str]) -> set[str]:
    """The names that one of `train.freeze` matches. Raises RecipeError for a pattern that matches none, and if nothing
    is left to train."""
    found: set[str] = set()
    for pattern in patterns:
        found |= set(_matches("train.freeze", pattern, names, names))
    if found and len(found) == len(set(names)):
        raise RecipeError(
            "nothing is left to train",
            where="train.freeze",
            why="its patterns match every parameter",
            fix="freeze less",
        )
    return found


def check_rates(names: Sequence[str], rates: Mapping[str, float]) -> None:
    """Raise RecipeError for a pattern of `train.rates` that decides nothing. names: of all that learns."""
    left = list(names)
    for pattern in rates:
        taken = _matches("train.rates", pattern, left, names)
        left = [name for name in left if name not in taken]


def factor_of(name: str, rates: Mapping[str, float]) -> float:
    """The factor on a parameter's learning rate: of the first of `train.rates` that matches."""
    return next((factor for pattern, factor in rates.items() if fnmatchcase(name, pattern)), 1.0)


def _matches(key: str, pattern: str, left: Sequence[str], names: Sequence[str]) -> list[str]:
    found = [name for name in left if fnmatchcase(name, pattern)]
    if not found:
        taken = any(fnmatchcase(name, pattern) for name in names)
        raise RecipeError(
            f"'{pattern}' matches no parameter" + (" that an earlier pattern has left" if taken else ""),
            where=key,
            why="the first pattern that matches counts" if taken else f"there are {len(names)}, such as {names[0]}",
            fix="put it before the wider pattern" if taken else _nearest(pattern, names),
        )
    return found


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """Which part of a name the pattern's writer may have meant: parameters, and the modules around them."""
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    near = difflib.get_close_matches(pattern.strip("*."), sorted(parts), n=1, cutoff=0.3)
    if not near:
        return "the names are those of the model's safetensors"
    return f"did you mean '{near[0] if near[0] in names else near[0] + '.*'}'?"
