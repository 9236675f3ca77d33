"""The first rows of items, as they are: what proposals are made from. Read in the sandbox, like everything.

Of an item 64 KB of rows are taken; formats that are read as a whole (a JSON document, a sheet) cost a reading all the
same. Nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox

ROW_BYTES = 1 << 16  # of one item

Row = dict[str, Any]


def sample_rows(
    items: Sequence[ItemInput], sandbox: Sandbox, row_bytes: int = ROW_BYTES, header_with: str | None = None
) -> list[list[Row]]:
    """For each item its first rows or objects, also those inside containers; none where it holds no rows, or cannot be
    read. The items are open files: a few hundred at most. header_with: a column that is looked for, so that the first
    row of a CSV file is its header however it looks. Raises EnvironmentProblem if no parser can be started."""
    found: list[list[Row]] = [[] for _ in items]
    options = ParseOptions(raw_rows=True, sample_bytes=row_bytes, text=header_with)
    records = sandbox.parse(items, options).records
    columns = (records.column(name).to_pylist() for name in ("item", "kind", "meta"))
    for number, kind, meta in zip(*columns, strict=True):
        if kind == "row":
            found[number].append(orjson.loads(meta))
    return found
