"""Shards with chosen records, scored, for tests of what selecting makes of them. No sandbox, no worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from in_process import InThisProcess

from sheaf.console import Silent
from sheaf.corpus import shards
from sheaf.corpus.workspace import Workspace
from sheaf.files import digest_of, task_folder
from sheaf.formats.schema import PARSED_ITEMS, PARSED_RECORDS, PARSED_REGIONS
from sheaf.prepare import select, stages
from sheaf.prepare.select import Selection
from sheaf.recipe import Recipe
from sheaf.sources.base import Item

Place = tuple[str, str]  # source, path


def record_id(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def tables_of(items: Mapping[Place, Sequence[str]], **changed: Any) -> tuple[list[bytes], shards.ShardTables]:
    """A shard of items, each a file of lines; and their keys. changed: columns of the items that say something else."""
    listed = [Item(s, p, f"/data/{s}/{p}", "1", sum(map(len, texts))) for (s, p), texts in items.items()]
    keys = [hashlib.blake2b(repr(place).encode(), digest_size=16).digest() for place in items]
    rows = [(n, line, text) for n, texts in enumerate(items.values()) for line, text in enumerate(texts)]
    number, line, text = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    same = {"kind": "text", "meta": "{}", "member": "", "media": "text/plain", "encoding": "utf-8", "repairs": ""}
    columns = {
        **{name: [same.get(name, "")] * len(rows) for name in PARSED_RECORDS.names},
        **{"item": number, "id": [record_id(t) for t in text], "text": text, "payload": [b""] * len(rows)},
        **{"locator": [f'{{"row":{n}}}' for n in line], "bytes": [len(t.encode()) for t in text]},
        **{"confidence": [1.0] * len(rows)},
    }
    records = pa.table({f.name: pa.array(columns[f.name], f.type) for f in PARSED_RECORDS}, schema=PARSED_RECORDS)
    about = {"item": np.arange(len(listed)), "structure_bytes": np.zeros(len(listed), np.int64)}
    said = [about[f.name] if f.name in about else [""] * len(listed) for f in PARSED_ITEMS]
    parsed = pa.table([pa.array(c, f.type) for c, f in zip(said, PARSED_ITEMS, strict=True)], schema=PARSED_ITEMS)
    tables = shards.build(listed, keys, records, PARSED_REGIONS.empty_table(), parsed)
    told = tables.items
    for name, value in changed.items():
        at = told.schema.get_field_index(name)
        told = told.set_column(at, told.schema.field(at), pa.array(value, told.schema.field(at).type))
    return keys, shards.ShardTables(tables.records, told, tables.quarantine)


@dataclass
class Store:
    """A workspace whose shards a test lays down."""

    workspace: Workspace
    shards: list[str] = field(default_factory=list[str])
    keys: set[bytes] = field(default_factory=set[bytes])

    @staticmethod
    def at(root: Path) -> Store:
        store = Store(Workspace(root))
        store.workspace.create()
        return store

    def add(self, items: Mapping[Place, Sequence[str]], **changed: Any) -> str:
        keys, tables = tables_of(items, **changed)
        name = digest_of(*keys, len(self.shards))
        with task_folder(self.workspace.shard(name), stage="read") as out:
            shards.write(tables, out)
        self.shards.append(name)
        self.keys |= set(keys)
        return name

    @contextmanager
    def selected(self, recipe: Recipe, **options: Any) -> Iterator[Selection]:
        asked = stages.with_exams(stages.asked(recipe), self.workspace, recipe, Silent())
        stages.run(self.workspace, asked, self.shards, InThisProcess(), Silent())
        with select.select(self.workspace, self.shards, self.keys, [], recipe, asked, **options) as selection:
            yield selection


def recipe_of(names: Sequence[str], **prepare: Any) -> Recipe:
    sources = [{"name": name, "uri": f"/data/{name}"} for name in names]
    return Recipe.model_validate({"name": "test", "sources": sources, "prepare": prepare})


def decisions(selection: Selection) -> dict[str, dict[str, Any]]:
    """By id in hex; `of` as hex."""
    table = pa.concat_tables(selection.decided.tables())
    return {row["id"].hex(): row | {"of": row["of"] and row["of"].hex()} for row in table.to_pylist()}
