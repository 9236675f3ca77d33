"""Where data lies: one file for each kind of place. `open_source` chooses by URI."""

from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal, Source
from sheaf.sources.registry import open_source, source_options

__all__ = [
    "Item",
    "ItemChanged",
    "ItemRefused",
    "ItemUnavailable",
    "Refusal",
    "Source",
    "open_source",
    "source_options",
]
