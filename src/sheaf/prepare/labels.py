"""Labels that lie beside the data: in the name of a picture's folder, or in its folder's table of metadata.

`label: folder` takes the name of the folder that an item lies in. `label: metadata` reads each `metadata.csv`, `.jsonl`
or `.parquet` of the source, in the sandbox like all data, and gives each item that a row's `file_name` (relative to the
table's folder) names the other columns of that row; the table itself trains nothing. What is found is in `Item.about`
and so in the item's key: a corrected label costs the reading of one item. Cost: one pass over the tables.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import orjson

from sheaf.errors import DataRefused, TryAgain
from sheaf.formats import labels
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits, SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal, Source

TABLES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
Found = list[Item | Refusal]


def labelled(found: Found, source: Source, spec: SourceSpec, limits: Limits) -> Found:
    """The listing of a source, with what lies beside each item in its `about`. Opens the tables of metadata."""
    if spec.label is None:
        return found
    if spec.label == "folder":
        return [_from_folder(x) if isinstance(x, Item) else x for x in found]
    tables = [x for x in found if isinstance(x, Item) and posixpath.basename(x.path) in TABLES]
    if not tables and found:
        raise DataRefused(
            f"the source '{spec.name}' has no table of labels",
            where=spec.uri,
            why=f"`label: metadata` looks for {', '.join(sorted(TABLES))} beside the files",
            fix="add the table, include it, or say label: folder",
        )
    rows = _rows(tables, source, limits)
    names = {x.path for x in tables}
    return [_from_rows(x, rows, names) if isinstance(x, Item) else x for x in found]


def _from_folder(item: Item) -> Item:
    folder = posixpath.basename(posixpath.dirname(item.path))
    return _about(item, {"label": folder}) if folder else item


def _from_rows(item: Item, rows: dict[str, dict[str, Any]], tables: set[str]) -> Item:
    if item.path in tables:
        return replace(item, media=labels.MEDIA)
    row = rows.get(item.path)
    return _about(item, row) if row else item


def _about(item: Item, more: dict[str, Any]) -> Item:
    known = orjson.loads(item.about) if item.about else {}
    return replace(item, about=orjson.dumps({**known, **more}, option=orjson.OPT_SORT_KEYS).decode())


def _rows(tables: Sequence[Item], source: Source, limits: Limits) -> dict[str, dict[str, Any]]:
    """Path of a file → the row that names it, less its name. Raises TryAgain if a table cannot be had now."""
    rows: dict[str, dict[str, Any]] = {}
    with Sandbox(limits) as sandbox:
        for table in tables:
            folder = posixpath.dirname(table.path)
            for row in _raw(table, source, sandbox):
                name = row.pop("file_name", None)
                if isinstance(name, str):
                    rows[posixpath.normpath(posixpath.join(folder, name))] = row
    return rows


def _raw(table: Item, source: Source, sandbox: Sandbox) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(source.open_item(table))
        except (ItemChanged, ItemUnavailable, ItemRefused) as error:
            raise TryAgain(
                f"the table of labels of source '{table.source}' could not be had now",
                where=table.uri,
                why=str(error),
                fix="run the same command again; without it no item of the source has a label",
            ) from error
        size = os.fstat(file.fileno()).st_size
        parsed = sandbox.parse([ItemInput(file, table.path, size, table.media)], ParseOptions(raw_rows=True))
    values = (orjson.loads(text) for text in parsed.records["text"].to_pylist())
    return [row for row in values if isinstance(row, dict)]
