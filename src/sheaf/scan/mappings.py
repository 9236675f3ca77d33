"""What the rows of a source look like, and what the recipe could say of them: proposals from raw rows of the sample."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict

from sheaf import privacy
from sheaf.engine.base import Json
from sheaf.errors import TryAgain
from sheaf.formats.detect import suffix_of
from sheaf.formats.propose import SURE, Row, propose_files
from sheaf.formats.row_samples import sample_rows
from sheaf.formats.sandbox import ItemInput, Sandbox
from sheaf.recipe import SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable
from sheaf.sources.registry import open_source

STRUCTURED = ("json", "ndjson", "csv", "tab-separated", "parquet", "arrow", "orc", "avro", "yaml", "sheet", "ms-excel")
FILES, ROWS = 12, 50  # of a source; of a file
PREVIEW = 2_000  # characters of a record that are shown


def mappings(spec: SourceSpec, looked: Sequence[tuple[Item, Json]], sandbox: Sandbox) -> list[Json]:
    """{"files", "rows", "proposals": [best first]} for each group of files with rows alike. Reads some files again."""
    wanted = [item for item, known in looked if _holds_rows(known)]
    if spec.query is None:
        wanted = sorted(wanted, key=lambda item: (item.path.count("/"), item.path))
    rows = _rows(spec, wanted[:FILES], sandbox)
    return [
        {
            "files": list(group.files),
            "rows": group.rows,
            "proposals": [
                {**asdict(p), "recipe": p.recipe, "preview": [_shown(text) for text in p.preview]}
                for p in group.proposals[:3]
            ],
        }
        for group in propose_files({name: found for name, found in rows.items() if found})
    ]


def _holds_rows(known: Json) -> bool:
    """Rows of nothing but a conversation are no records before they are mapped."""
    return any(s in known["media"] for s in STRUCTURED) and bool(known["records"] or "no-text" in known["lost"])


def bucket(path: str) -> tuple[str, str]:
    """Files that are taken to be alike: those of one folder with one suffix."""
    return posixpath.dirname(path), suffix_of(path)


def sure_keys(groups: Sequence[Json]) -> dict[tuple[str, str], Json]:
    """What the recipe would say of the rows in a bucket, {"map": …} or {"text": …}, where all its files agree on it."""
    found: dict[tuple[str, str], list[Json | None]] = {}
    for group in groups:
        best = group["proposals"][0] if group["proposals"] else None
        keys = best["keys"] if best is not None and best["confidence"] >= SURE else None
        for file in group["files"]:
            found.setdefault(bucket(file), []).append(keys)
    return {where: keys[0] for where, keys in found.items() if keys[0] and all(k == keys[0] for k in keys)}


def _shown(text: str) -> str:
    """A preview is data: what is private in it stays out of what we write."""
    return privacy.hidden(text[:PREVIEW])


def _rows(spec: SourceSpec, items: Sequence[Item], sandbox: Sandbox) -> dict[str, list[Row]]:
    """The first rows of each item, as they are."""
    if not items:
        return {}
    place = open_source(spec)
    rows: dict[str, list[Row]] = {}
    with ExitStack() as stack:
        inputs: dict[str, ItemInput] = {}
        for item in items:
            with suppress(ItemChanged, ItemUnavailable, ItemRefused, TryAgain):  # the survey has told of it
                file = stack.enter_context(place.open_item(item))
                inputs[item.path] = ItemInput(file, item.path, os.fstat(file.fileno()).st_size, item.media)
        for path, found in zip(inputs, sample_rows(list(inputs.values()), sandbox), strict=True):
            rows[path] = found[:ROWS]
    return rows
