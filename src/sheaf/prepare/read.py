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
import pyarrow.compute as pc

from sheaf.corpus import shards
from sheaf.corpus.reading import parse_options
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import digest_json, digest_of, task_folder
from sheaf.formats import READER_VERSION
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.formats.schema import PARSED_RECORDS, PARSED_REGIONS
from sheaf.recipe import Limits, Recipe, SourceSpec
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable
from sheaf.sources.registry import open_source, source_options

READ_VERSION = 2
BATCH_ITEMS = 4096
OPEN_ITEMS = 200  # descriptors held at once: the usual soft limit is 1024, and several workers share a terminal's
OPEN_BYTES = 64 << 20
SHARD_TEXT_BYTES = 256 << 20  # gathered text after which a batch's shard is written and another begun


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
        return bytes.fromhex(
            digest_of(self._prefix[item.source], item.path, item.uri, item.version, item.media, item.about)
        )


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
    return Task(
        function="sheaf.prepare.read:read_batch",
        arguments={
            "workspace": str(workspace.root),
            "source": spec.model_dump(mode="json", by_alias=True),
            "limits": recipe.prepare.limits.model_dump(mode="json"),
            "mojibake": recipe.prepare.mojibake,
            "items": [
                [x.item.path, x.item.uri, x.item.version, x.item.size, x.item.media, x.item.about] for x in batch
            ],
            "keys": [x.key.hex() for x in batch],
        },
        label=f"read {len(batch)} items of {spec.name}",
        weight=sum(max(x.item.size, 0) for x in batch),
    )


def read_batch(
    workspace: str,
    source: dict[str, Any],
    limits: dict[str, Any],
    mojibake: bool,
    items: list[list[Any]],
    keys: list[str],
) -> Json:
    """Read a batch of items into a shard, or several where they expand to much text.

    Items that cannot be had are left out: {"changed": [KEY, …], "unavailable": [[URI, why], …], "refused": [[KEY,
    reason, detail], …]}. None of that is kept: the next run asks again.
    """
    spec = SourceSpec.model_validate(source)
    batch = [Listed(Item(spec.name, *fields), bytes.fromhex(key)) for fields, key in zip(items, keys, strict=True)]
    reader = _Reader(spec, parse_options(spec, mojibake=mojibake))
    store = Workspace(Path(workspace))
    with Sandbox(Limits.model_validate(limits)) as sandbox:
        for group in _groups(batch):
            reader.read(group, sandbox)
            if reader.text_bytes > SHARD_TEXT_BYTES:
                reader.write_shard(store)
    reader.write_shard(store)
    changed = [x.key.hex() for x in reader.changed]
    return {"changed": changed, "unavailable": reader.unavailable, "refused": reader.refused}


def _groups(batch: Sequence[Listed]) -> Iterator[Sequence[Listed]]:
    """A few items at a time: open descriptors and bytes in flight are bounded."""
    start = 0
    while start < len(batch):
        stop, size = start, 0
        while stop < len(batch) and stop - start < OPEN_ITEMS and (stop == start or size < OPEN_BYTES):
            size += max(batch[stop].item.size, 0)
            stop += 1
        yield batch[start:stop]
        start = stop


class _Reader:
    """Opens items, has them parsed, and gathers the answers until they make a shard."""

    def __init__(self, spec: SourceSpec, options: ParseOptions) -> None:
        self.source = open_source(spec)
        self.options = options
        self.changed: list[Listed] = []
        self.unavailable: list[list[str]] = []
        self.refused: list[list[str]] = []
        self._begin()

    def _begin(self) -> None:
        self.text_bytes = 0
        self.items: list[Listed] = []  # what the next shard holds; `item` in the tables counts in it
        self.records: list[pa.Table] = [PARSED_RECORDS.empty_table()]
        self.regions: list[pa.Table] = [PARSED_REGIONS.empty_table()]
        self.about: list[pa.Table] = []

    def read(self, group: Sequence[Listed], sandbox: Sandbox) -> None:
        with ExitStack() as stack:
            opened = [(x, file) for x in group if (file := self._open(x, stack)) is not None]
            if opened:
                self._parse(opened, sandbox)

    def write_shard(self, store: Workspace) -> None:
        if not self.items:
            return
        keys = [x.key for x in self.items]
        records, regions, about = (pa.concat_tables(t) for t in (self.records, self.regions, self.about))
        tables = shards.build([x.item for x in self.items], keys, records, regions, about)
        name = digest_json([READ_VERSION, [key.hex() for key in keys]])
        with task_folder(store.shard(name), stage="read", items=len(keys)) as out:
            shards.write(tables, out)
        self._begin()

    def _open(self, x: Listed, stack: ExitStack) -> BinaryIO | None:
        try:
            return stack.enter_context(self.source.open_item(x.item))
        except ItemChanged:
            self.changed.append(x)
        except ItemUnavailable as error:
            self.unavailable.append([x.item.uri, str(error)])
        except ItemRefused as refused:
            self.refused.append([x.key.hex(), refused.reason, refused.detail])
        return None

    def _parse(self, opened: Sequence[tuple[Listed, BinaryIO]], sandbox: Sandbox) -> None:
        before = [os.fstat(file.fileno()) for _, file in opened]
        inputs = [
            ItemInput(file, x.item.path, stat.st_size, x.item.media, x.item.about)
            for (x, file), stat in zip(opened, before, strict=True)
        ]
        parsed = sandbox.parse(inputs, self.options)
        number: list[int] = []
        for (x, file), stat in zip(opened, before, strict=True):
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                number.append(len(self.items))
                self.items.append(x)
            else:  # written to while it was read: what came of it is neither the old item nor the new one
                number.append(-1)
                self.changed.append(x)
        numbers = pa.array(number, pa.int32())
        self.records.append(_renumber(parsed.records, numbers))
        self.regions.append(_renumber(parsed.regions, numbers))
        self.about.append(_renumber(parsed.items, numbers))
        self.text_bytes += parsed.records.nbytes


def _renumber(table: pa.Table, numbers: pa.Array) -> pa.Table:
    """The rows of items that are kept, with the item's number in the shard. numbers: int32 by number asked, or -1."""
    position = table.schema.get_field_index("item")
    item = numbers.take(table["item"].combine_chunks())
    return table.set_column(position, table.schema.field(position), item).filter(pc.greater_equal(item, 0))
