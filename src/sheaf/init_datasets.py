"""Data sets that `sheaf init` recognises by how they lie: labels in folders' names or in tables, splits by name.

Only clear evidence becomes a line of the recipe, with a comment that says what was seen:

- `label: metadata`: a `metadata.csv`, `.jsonl` or `.parquet` above pictures or sounds whose rows have a `file_name`;
- `label: folder`: else, where all of them lie equally deep, in several folders with at least two files each on average;
- `split: train`: where the path of every file names a split, and `train` is not the only one. The others are for
  measuring, and a model that has seen them measures nothing.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from sheaf.init_tables import TableSource, sampled_rows
from sheaf.prepare.labels import NAME, TABLES, label_of
from sheaf.sources.splits import split_of

MEDIA = ("images", "audio")
MOST_TABLES = 20  # of metadata, that are named one by one
SHOWN = 6


def metadata_tables(folder: Path, tables: Sequence[str], media: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """kind → the tables of metadata that speak of its files. media: kind → paths."""
    above = {kind: {str(p) for path in paths for p in PurePosixPath(path).parents} for kind, paths in media.items()}
    found: dict[str, list[str]] = {kind: [] for kind in media}
    able = [t for t in tables if PurePosixPath(t).name in TABLES]
    able = [t for t in able if any(str(PurePosixPath(t).parent) in folders for folders in above.values())]
    if len(able) > MOST_TABLES:
        return found  # what so many say is not looked at, so nothing is clear
    rows = sampled_rows(folder, able, NAME)
    for table in able:
        if any(key == NAME or key.endswith(f"_{NAME}") for row in rows.get(table, ()) for key in row):
            for kind, folders in above.items():
                if str(PurePosixPath(table).parent) in folders:
                    found[kind].append(table)
    return found


def labelled(source: TableSource, paths: Sequence[str], tables: Sequence[str]) -> TableSource:
    """A source of pictures or sounds, with its labels if it is clear where they are."""
    if tables:
        include = (*source.include, *(glob.escape(table) for table in tables))
        note = f"label: metadata: rows of {_some(tables)} name these files"
        return replace(source, include=include, more=f"{source.more}, label: metadata", notes=(*source.notes, note))
    count = Counter(label_of(path) for path in paths)
    depths = {path.count("/") for path in paths}
    if "" in count or len(count) < 2 or len(depths) > 1 or len(paths) < 2 * len(count):
        return source
    note = f"label: folder: {len(count):,} folders hold {len(paths):,} files: {_some(sorted(count))}"
    return replace(source, more=f"{source.more}, label: folder", notes=(*source.notes, note))


def split(source: TableSource, paths: Sequence[str]) -> TableSource:
    """The source, without what its files' names set apart from training."""
    count = Counter(split_of(path) for path in paths)
    if "" in count or "train" not in count or len(count) < 2:
        return source
    others = " and ".join(f"{n:,} of {name}" for name, n in sorted(count.items()) if name != "train")
    note = f"split: train: {count['train']:,} files; left out, to measure with: {others}"
    return replace(source, more=f"{source.more}, split: train", notes=(*source.notes, note))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
