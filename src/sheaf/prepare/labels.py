"""Labels that lie beside the data: in the name of a picture's folder, or in its folder's table of metadata.

`label: folder` takes the name of the folder that an item lies in. `label: metadata` reads each `metadata.csv`, `.jsonl`
or `.parquet` of the source, in the sandbox like all data, and gives each item that a row's `file_name` (relative to the
table's folder) names the other columns of that row; of several rows the one whose table lies nearest, and the last of
that. A row may also name several files, in columns such as `mask_file_name`: each has the row. The table itself trains
nothing; rows without a file, files without a row and rows that cannot be read are noted in its line of the ledger. What
is found is in `Item.about` and so in the item's key: a corrected label costs the reading of one item. Labels inside
archives are not looked for. Cost: one pass over the tables.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import orjson
import pyarrow.compute as pc

from sheaf.errors import DataRefused, TryAgain
from sheaf.formats import labels
from sheaf.formats.detect import suffix_of
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.formats.table import BY_SUFFIX
from sheaf.recipe import Limits, SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal, Source
from sheaf.sources.splits import is_split

TABLES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
NAME = "file_name"
Found = list[Item | Refusal]
Rows = dict[str, dict[str, Any]]


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
    items = [x for x in found if isinstance(x, Item)]
    rows, notes = _rows(tables, items, source, limits)
    return [_from_rows(x, rows, notes) if isinstance(x, Item) else x for x in found]


def _from_folder(item: Item) -> Item:
    folder = label_of(item.path)
    return _about(item, {"label": folder}) if folder else item


def label_of(path: str) -> str:
    """The name of the folder that a file lies in; "" for none, and for one that is only called as a split."""
    folder = posixpath.basename(posixpath.dirname(path))
    return "" if is_split(folder) else folder


def _from_rows(item: Item, rows: Rows, notes: dict[str, list[str]]) -> Item:
    if item.path in notes:
        return _about(replace(item, media=labels.MEDIA), {labels.NOTES: notes[item.path]})
    row = rows.get(item.path)
    return _about(item, row) if row else item


def _about(item: Item, more: dict[str, Any]) -> Item:
    known = orjson.loads(item.about) if item.about else {}
    return replace(item, about=orjson.dumps({**known, **more}, option=orjson.OPT_SORT_KEYS).decode())


def _rows(
    tables: Sequence[Item], items: Sequence[Item], source: Source, limits: Limits
) -> tuple[Rows, dict[str, list[str]]]:
    """(path of a file → the row that names it, less its name; path of a table → what does not fit in it). Raises
    TryAgain if a table cannot be had now."""
    rows: Rows = {}
    notes: dict[str, list[str]] = {}
    there = {item.path for item in items}
    files = {path for path in there if _is_media(path)}
    with Sandbox(limits) as sandbox:
        for table in sorted(tables, key=lambda x: (x.path.count("/"), x.path)):
            read, lost = _raw(table, source, sandbox)
            folder = posixpath.dirname(table.path)
            named = [
                (posixpath.normpath(posixpath.join(folder, name)), row) for row in read for name, row in _named(row)
            ]
            absent = [path for path, _ in named if path not in there]
            paths = {path for path, _ in named}
            alone = sorted(p for p in files - paths - rows.keys() if p.startswith(f"{folder}/" if folder else ""))
            notes[table.path] = [
                *_note(len(absent), "rows name no file that is here", min(absent, default="")),
                *_note(len(alone), "files have no row in it", alone[0] if alone else ""),
                *_note(len(named) - len(paths), "rows name a file once more; the last one counts", ""),
                *_note(sum(not any(_named(row)) for row in read), f"rows have no {NAME}", ""),
                *_note(len(lost), "parts of it could not be read", lost[0] if lost else ""),
            ]
            rows.update(named)
    return rows, notes


def _named(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The files that a row names, each with the rest of the row."""
    columns = [name for name, value in row.items() if (name == NAME or name.endswith(f"_{NAME}")) and value]
    without = {name: value for name, value in row.items() if name != NAME}
    return [(row[name], without) for name in columns if isinstance(row[name], str)]


def _note(count: int, what: str, example: str) -> list[str]:
    return [f"{count:,} {what}" + (f": {example}"[:120] if example else "")] if count else []


def _is_media(path: str) -> bool:
    known = BY_SUFFIX.get(suffix_of(path))
    return known is not None and known.media.startswith(("image/", "audio/"))


def _raw(table: Item, source: Source, sandbox: Sandbox) -> tuple[list[dict[str, Any]], list[str]]:
    """Its rows, and why the rest of it could not be read."""
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
        options = ParseOptions(raw_rows=True, text=NAME)  # a column that is asked for: so row 1 is a table's header
        parsed = sandbox.parse([ItemInput(file, table.path, size, table.media)], options)
    records = parsed.records.filter(pc.equal(parsed.records["kind"], "row"))
    lost = [f"{r['reason']}, {r['detail']}" for r in parsed.regions.to_pylist()]
    # From meta: a record's text is normalised, and the names of files are not.
    return [orjson.loads(meta) for meta in records["meta"].to_pylist()], lost
