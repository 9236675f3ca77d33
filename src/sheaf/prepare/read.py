"""The reading stage: items become shards, each item once.

An item's *key* digests everything that its records depend on: where it lies, its version, the source's options, the
limits and the reader's version. Items whose key is in no shard are grouped, in listing order, into batches; a batch is
one task and gives one shard. Batches depend on what is new and not on the number of workers; and nothing later
depends on how items were grouped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from sheaf.corpus import shards
from sheaf.corpus.reading import parse_options
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import digest_json, digest_of, task_folder
from sheaf.formats import READER_VERSION
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits, Recipe, SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemUnavailable
from sheaf.sources.registry import open_source, source_options

READ_VERSION = 1
BATCH_ITEMS = 4096
OPEN_ITEMS = 200  # descriptors held at once: the usual soft limit is 1024, and several workers share a terminal's
OPEN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """An item with the key of what reading it gives."""

    item: Item
    key: bytes


class Keys:
    """Computes item keys; the part that all items of a source share is digested once."""

    def __init__(self, recipe: Recipe) -> None:
        self._prefix = {
            spec.name: digest_json(
                [
                    *(READ_VERSION, READER_VERSION, spec.name, source_options(spec)),
                    *(recipe.prepare.mojibake, recipe.prepare.limits.model_dump()),
                ]
            )
            for spec in recipe.sources
        }

    def of(self, item: Item) -> bytes:
        return bytes.fromhex(digest_of(self._prefix[item.source], item.path, item.uri, item.version))


def batches(new: Sequence[Listed]) -> Iterator[list[Listed]]:
    """Group by source and listing order, by bytes: enough batches to share out, not so many that files abound."""
    total = sum(max(x.item.size, 0) for x in new)
    target = min(max(total // 64, 4 << 20), 128 << 20)
    batch: list[Listed] = []
    size = 0
    for x in new:
        if batch and (x.item.source != batch[0].item.source or size >= target or len(batch) >= BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append(x)
        size += max(x.item.size, 0)
    if batch:
        yield batch


def task(workspace: Workspace, recipe: Recipe, spec: SourceSpec, batch: Sequence[Listed]) -> Task:
    shard = digest_json([READ_VERSION, [x.key.hex() for x in batch]])
    return Task(
        function="sheaf.prepare.read:read_batch",
        arguments={
            "workspace": str(workspace.root),
            "shard": shard,
            "source": spec.model_dump(mode="json", by_alias=True),
            "limits": recipe.prepare.limits.model_dump(mode="json"),
            "mojibake": recipe.prepare.mojibake,
            "items": [[x.item.path, x.item.uri, x.item.version, x.item.size, x.item.media] for x in batch],
            "keys": [x.key.hex() for x in batch],
        },
        label=f"read {len(batch)} items of {spec.name}",
        weight=sum(max(x.item.size, 0) for x in batch),
    )


def read_batch(
    workspace: str,
    shard: str,
    source: dict[str, Any],
    limits: dict[str, Any],
    mojibake: bool,
    items: list[list[Any]],
    keys: list[str],
) -> Json:
    """Read a batch of items into one shard. Items that cannot be had now are left out and named in the result."""
    spec = SourceSpec.model_validate(source)
    batch = [Item(spec.name, path, uri, version, size, media) for path, uri, version, size, media in items]
    folder = Workspace(Path(workspace)).shard(shard)
    reader = _Reader(spec, parse_options(spec, mojibake=mojibake))
    with Sandbox(Limits.model_validate(limits)) as sandbox:
        reader.read_all(batch, sandbox)
    done = [i for i in range(len(batch)) if i not in reader.deferred]
    if done:
        tables = reader.tables(batch, [bytes.fromhex(k) for k in keys], done)
        with task_folder(folder, stage="read", items=len(done)) as out:
            shards.write(tables, out)
    return {"shard": shard if done else None, "deferred": [[batch[i].uri, why] for i, why in reader.deferred.items()]}


class _Reader:
    """Opens items a few at a time, parses them, and collects the answers."""

    def __init__(self, spec: SourceSpec, options: ParseOptions) -> None:
        self.source = open_source(spec)
        self.options = options
        self.deferred: dict[int, str] = {}
        self.records: list[pa.Table] = []
        self.regions: list[pa.Table] = []
        self.about: list[pa.Table] = []

    def read_all(self, batch: Sequence[Item], sandbox: Sandbox) -> None:
        start = 0
        while start < len(batch):
            stop, size = start, 0
            while stop < len(batch) and stop - start < OPEN_ITEMS and (stop == start or size < OPEN_BYTES):
                size += max(batch[stop].size, 0)
                stop += 1
            with ExitStack() as stack:
                opened = self._open(batch, range(start, stop), stack)
                self._parse(opened, batch, sandbox)
            start = stop

    def _open(self, batch: Sequence[Item], numbers: range, stack: ExitStack) -> list[tuple[int, BinaryIO]]:
        opened: list[tuple[int, BinaryIO]] = []
        for i in numbers:
            try:
                opened.append((i, stack.enter_context(self.source.open_item(batch[i]))))
            except (ItemChanged, ItemUnavailable) as error:
                self.deferred[i] = str(error)
        return opened

    def _parse(self, opened: list[tuple[int, BinaryIO]], batch: Sequence[Item], sandbox: Sandbox) -> None:
        if not opened:
            return
        inputs = [
            ItemInput(file=f, name=batch[i].path, size=os.fstat(f.fileno()).st_size, media=batch[i].media)
            for i, f in opened
        ]
        parsed = sandbox.parse(inputs, self.options)
        numbers = pa.array([i for i, _ in opened], pa.int32())
        self.records.append(_renumber(parsed.records, numbers))
        self.regions.append(_renumber(parsed.regions, numbers))
        self.about.append(_renumber(parsed.items, numbers))

    def tables(self, batch: Sequence[Item], keys: Sequence[bytes], done: list[int]) -> shards.ShardTables:
        """The shard's tables over the items that were read, numbered anew without the deferred ones."""
        new_number = [-1] * len(batch)
        for n, i in enumerate(done):
            new_number[i] = n
        numbers = pa.array(new_number, pa.int32())
        records, regions, about = (
            _renumber(pa.concat_tables(t), numbers) for t in (self.records, self.regions, self.about)
        )
        return shards.build([batch[i] for i in done], [keys[i] for i in done], records, regions, about)


def _renumber(table: pa.Table, numbers: pa.Array) -> pa.Table:
    position = table.schema.get_field_index("item")
    return table.set_column(position, table.schema.field(position), numbers.take(table["item"].combine_chunks()))
