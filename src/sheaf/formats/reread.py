"""From an origin back to its text: prove that a record came from where its origin says.

The item is parsed again in the same sandbox, and the record with that member and locator is taken. Costs one parse of
the item: parsing is a pure function, so what was found there once is found there again.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import orjson
import pyarrow.compute as pc

from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox


def reread(
    file: BinaryIO,
    name: str,
    member: str,
    locator: dict[str, Any],
    options: ParseOptions,
    sandbox: Sandbox,
    media: str = "",
    about: str = "",
) -> str | None:
    """The normalised text at member and locator of the item; None if there is no such record."""
    item = ItemInput(file, name, os.fstat(file.fileno()).st_size, media, about)
    wanted: str | None = None
    for part in sandbox.parse_in_parts([item], options):  # to the end: if the item is refused there, it proves nothing
        for records in (part.records, *(table for long in part.long for table in long.records())):
            found = records.filter(pc.equal(records.column("member"), member))
            for text, place in zip(found.column("text"), found.column("locator"), strict=True):
                if wanted is None and orjson.loads(place.as_py()) == locator:
                    wanted = text.as_py()
    return wanted
