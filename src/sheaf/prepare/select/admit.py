"""Exceptions of `prepare.admit`: records that pass although a rule drops them, because of the item they lie in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from sheaf.corpus.columns import Array, new_array
from sheaf.corpus.schema import DROPS
from sheaf.errors import RecipeError
from sheaf.prepare.rule_sets import RULE_SETS
from sheaf.prepare.select.fold import Records
from sheaf.prepare.select.items import LiveItems
from sheaf.privacy import KINDS
from sheaf.recipe import Admit
from sheaf.sources.globs import compile_globs

FORGOTTEN, TEMPLATE = "forgotten", "template"
_DETAILS = {"privacy": list(KINDS)} | {name: [rule.signal for rule in rules.rules] for name, rules in RULE_SETS.items()}


def check_admit(rules: Sequence[Admit], sources: Sequence[str]) -> None:
    """Raise RecipeError for a reason or a source that there is not: it would admit nothing, in silence."""
    for rule in rules:
        if rule.source is not None and rule.source not in sources:
            near = get_close_matches(rule.source, sources, 1)
            raise RecipeError(
                f"no source is called '{rule.source}'",
                where=f"prepare.admit, path: {rule.path}",
                why=f"the sources are {', '.join(sources)}",
                fix=f"write '{near[0]}'" if near else "name one of them, or leave `source` out for all",
            )
        if rule.reason is not None and rule.reason.partition(":")[0] not in DROPS:
            raise RecipeError(
                f"no record is dropped as '{rule.reason}'",
                where=f"prepare.admit, path: {rule.path}",
                fix=f"reasons are {', '.join(DROPS)}; what was quarantined is admitted by encoding, format or limits",
            )
        base, _, detail = (rule.reason or "").partition(":")
        if detail and base in _DETAILS and detail not in _DETAILS[base]:
            near = get_close_matches(detail, _DETAILS[base], 1)
            raise RecipeError(
                f"no record is dropped as '{rule.reason}'",
                where=f"prepare.admit, path: {rule.path}",
                why=f"'{base}' drops by {', '.join(_DETAILS[base])}",
                fix=f"write '{base}:{near[0]}'" if near else f"write '{base}' for all of them",
            )
        if rule.reason == FORGOTTEN:
            raise RecipeError(
                "what was forgotten is not admitted again by a recipe",
                where=f"prepare.admit, path: {rule.path}",
                fix="take the entry out of the workspace's forgotten.json, and prepare again",
            )
        if rule.reason == TEMPLATE:
            raise RecipeError(
                "what the chat template does not take cannot be trained",
                where=f"prepare.admit, path: {rule.path}",
                fix="name another template in prepare.template, or mend what it says of these conversations",
            )


def idle_rules(rules: Sequence[Admit], places: Sequence[tuple[str, str]]) -> list[Admit]:
    """The rules that match no item. places: source and path of every item."""
    return [rule for rule in rules if not any(_matches(rule, places))]


class Admission:
    """Which records each rule lets pass: those with an occurrence in an item that the rule matches.

    A rule lets its reason pass and nothing else: what is too short may still hold a secret. Cost: a byte a record and
    rule, on disk.
    """

    def __init__(self, rules: Sequence[Admit], items: LiveItems, records: Records, folder: Path) -> None:
        wanted = [rule for rule in rules if rule.reason is not None]
        places = list(zip(*(items.table[name].to_pylist() for name in ("source", "path")), strict=True))
        matching = [np.fromiter(_matches(rule, places), bool, len(items)) for rule in wanted]
        self._reasons = [rule.reason or "" for rule in wanted]
        self._inside = [new_array(folder / f"admitted-{n}.npy", "?", len(records)) for n in range(len(wanted))]
        for piece in records.pieces() if wanted else ():
            for inside, matches in zip(self._inside, matching, strict=True):
                inside[piece.rank[matches[piece.live]]] = True

    def __bool__(self) -> bool:
        return bool(self._reasons)

    def apply(self, codes: Array, ranks: Array | slice, reasons: Sequence[str]) -> None:
        """Set the codes to 0 of the records, at these ranks, that may pass. reasons: what the codes mean."""
        for reason, inside in zip(self._reasons, self._inside, strict=True):
            named = np.array([r != "" and reason in (r, r.partition(":")[0]) for r in reasons], bool)
            codes[named[codes] & inside[ranks]] = 0


def _matches(rule: Admit, places: Iterable[tuple[str, str]]) -> Iterator[bool]:
    glob = compile_globs([rule.path])
    return (rule.source in (None, s) and glob.fullmatch(p) is not None for s, p in places)
