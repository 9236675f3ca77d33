"""How the items of a source are parsed: the one place that turns a recipe's source into options of the parsers."""

from __future__ import annotations

import orjson

from sheaf.formats.sandbox import ParseOptions
from sheaf.recipe import SourceSpec
from sheaf.sources.registry import source_options


def parse_options(spec: SourceSpec, *, mojibake: bool) -> ParseOptions:
    """The same for reading and for reading again: else lineage would prove nothing."""
    # A row of a query is found again by its key, by default its first column; bytes of a page would prove little.
    asked = source_options(spec)
    key = () if spec.query is None else (asked["key"] or "",)
    mapping = "" if asked["map"] is None else orjson.dumps(asked["map"], option=orjson.OPT_SORT_KEYS).decode()
    return ParseOptions(text=spec.text, key=key, mojibake=mojibake, map=mapping)
