"""How the items of a source are parsed: the one place that turns a recipe's source into options of the parsers."""

from __future__ import annotations

from sheaf.formats.sandbox import ParseOptions
from sheaf.recipe import SourceSpec
from sheaf.sources.registry import source_options


def parse_options(spec: SourceSpec, *, mojibake: bool) -> ParseOptions:
    """The same for reading and for reading again: else lineage would prove nothing."""
    key = source_options(spec).get("key")
    columns = tuple(key) if isinstance(key, list) else (key,) if key else ()
    return ParseOptions(text=spec.text, key=columns, mojibake=mojibake)
