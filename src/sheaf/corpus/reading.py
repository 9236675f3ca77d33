"""How the items of a source are parsed: the one place that turns a recipe's source into options of the parsers.

Most items of a source are read alike. Those that a rule of `prepare.admit` matches have a `Manner` of their own, which
is part of their key: a new rule reads again what it matches, and nothing else. Where several rules match, the first
that says something of a kind decides on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import orjson

from sheaf.errors import RecipeError
from sheaf.formats.encoding import codec_name
from sheaf.formats.sandbox import ParseOptions
from sheaf.formats.table import BY_MEDIA
from sheaf.recipe import Admit, Limits, Prepare, SourceSpec
from sheaf.sources.globs import compile_globs
from sheaf.sources.registry import source_options

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manner:
    """How an item is read unlike its neighbours. encoding, format: "" if they are detected. limits: None for the
    recipe's."""

    encoding: str = ""
    format: str = ""
    limits: Limits | None = None

    def as_json(self) -> Json:
        limits = None if self.limits is None else self.limits.model_dump(mode="json")
        return {"encoding": self.encoding, "format": self.format, "limits": limits}

    @staticmethod
    def from_json(value: Json) -> Manner:
        limits = None if value["limits"] is None else Limits.model_validate(value["limits"])
        return Manner(value["encoding"], value["format"], limits)


USUAL = Manner()


class Manners:
    """The manner of each item of a recipe. Raises RecipeError for an encoding or a format that does not exist."""

    def __init__(self, prepare: Prepare) -> None:
        self._rules = [(rule, compile_globs([rule.path])) for rule in prepare.admit if _changes_reading(rule)]
        for rule, _ in self._rules:
            _check(rule)

    def of(self, source: str, path: str) -> Manner:
        if not self._rules:
            return USUAL
        rules = [r for r, glob in self._rules if r.source in (None, source) and glob.fullmatch(path)]
        encoding = next((r.encoding for r in rules if r.encoding), "")
        format = next((r.format for r in rules if r.format), "")
        limits = next((r.limits for r in rules if r.limits), None)
        return Manner(codec_name(encoding), format, limits)


def parse_options(spec: SourceSpec, *, mojibake: bool, manner: Manner = USUAL) -> ParseOptions:
    """The same for reading and for reading again: else lineage would prove nothing."""
    # A row of a query is found again by its key, by default its first column; bytes of a page would prove little.
    asked = source_options(spec)
    key = () if spec.query is None else (asked["key"] or "",)
    mapping = "" if asked["map"] is None else orjson.dumps(asked["map"], option=orjson.OPT_SORT_KEYS).decode()
    return ParseOptions(
        text=spec.text, key=key, mojibake=mojibake, map=mapping, encoding=manner.encoding, format=manner.format
    )


def _changes_reading(rule: Admit) -> bool:
    return rule.encoding is not None or rule.format is not None or rule.limits is not None


def _check(rule: Admit) -> None:
    if rule.encoding is not None and not codec_name(rule.encoding):
        raise RecipeError(
            f"no encoding is called '{rule.encoding}'",
            where=f"prepare.admit, path: {rule.path}",
            fix="name one that Python knows, such as cp1251, shift_jis or utf-16-le",
        )
    if rule.format is not None and rule.format not in BY_MEDIA:
        near = get_close_matches(rule.format, BY_MEDIA, 1)
        raise RecipeError(
            f"no format is called '{rule.format}'",
            where=f"prepare.admit, path: {rule.path}",
            fix=f"did you mean {near[0]}?" if near else "name a media type that is read, such as text/plain",
        )
