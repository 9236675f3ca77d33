"""The reading stage: items become shards, each item once.

An item's *key* digests everything that its records depend on: where it lies, its version, the source's options, the
limits and the reader's version. Items whose key is in no shard are grouped, in listing order, into batches; a batch is
one task and gives one shard, or several where it expands to much text. Batches depend on what is new and not on the
number of workers; and nothing later depends on how items were grouped.

A long item, which alone would fill a shard, gets shards of its own (*parts*), cut where so many bytes of its records
are reached: the same in every run. Memory: about four times SHARD_BYTES, whatever the items expand to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus import forgotten, shards
from sheaf.corpus.reading import USUAL, Manner, Manners, parse_options
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.errors import TryAgain
from sheaf.files import digest_json, digest_of, task_folder
from sheaf.formats import READER_VERSION
from sheaf.formats.long_item import LongItem, row_bytes
from sheaf.formats.sandbox import GROUP, ItemInput, Parsed, ParseOptions, Sandbox, kept_sandbox
from sheaf.formats.schema import PARSED_RECORDS, PARSED_REGIONS
from sheaf.recipe import Limits, Recipe, SourceSpec
from sheaf.sources.ahead import Ahead
from sheaf.sources.base import Item, ItemChanged, ItemRefused, ItemUnavailable
from sheaf.sources.registry import open_source, source_options

READ_VERSION = 5
BATCH_ITEMS = 4096
OPEN_ITEMS = GROUP  # descriptors held at once, beside those fetched ahead
OPEN_BYTES = 64 << 20
SHARD_BYTES = 64 << 20  # of gathered records (`row_bytes`), after which a shard is written and another begun


@dataclass(frozen=True, slots=True)
class Listed:
    """An item with the key of what reading it gives."""

    item: Item
    key: bytes
    manner: Manner = USUAL


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

        self._manners = Manners(recipe.prepare)
        self._of_manner: dict[Manner, tuple[str, ...]] = {USUAL: ()}

    def listed(self, item: Item) -> Listed:
        manner = self._manners.of(item.source, item.path)
        if manner not in self._of_manner:
            self._of_manner[manner] = (digest_json(manner.as_json()),)
        parts = (self._prefix[item.source], item.path, item.uri, item.version, item.media, item.about)
        # As one repr: this is done for every item of every run, and names may hold lone surrogates.
        return Listed(item, bytes.fromhex(digest_of(repr(parts + self._of_manner[manner]))), manner)


def batches(new: Sequence[Listed]) -> Iterator[list[Listed]]:
    """Group what is read alike, in listing order, by bytes: enough batches to share out, not so many files."""
    total = sum(max(x.item.size, 0) for x in new)
    target = min(max(total // 64, 4 << 20), 128 << 20)
    alike: dict[tuple[str, Manner], list[Listed]] = {}
    for x in new:
        alike.setdefault((x.item.source, x.manner), []).append(x)
    for group in alike.values():
        batch: list[Listed] = []
        size = 0
        for x in group:
            if batch and (size >= target or len(batch) >= BATCH_ITEMS):
                yield batch
                batch, size = [], 0
            batch.append(x)
            size += max(x.item.size, 0)
        yield batch


def task(workspace: Workspace, recipe: Recipe, spec: SourceSpec, batch: Sequence[Listed]) -> Task:
    return Task(
        function="sheaf.prepare.read:read_batch",
        arguments={
            "workspace": workspace.where,
            "source": spec.model_dump(mode="json", by_alias=True),
            "limits": (batch[0].manner.limits or recipe.prepare.limits).model_dump(mode="json"),
            "mojibake": recipe.prepare.mojibake,
            "manner": batch[0].manner.as_json(),
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
    manner: dict[str, Any],
    items: list[list[Any]],
    keys: list[str],
) -> Json:
    """Read a batch of items into a shard, or several where they expand to much text.

    Items that cannot be had are left out: {"changed": [KEY, …], "unavailable": [[KEY, why], …], "refused": [[KEY,
    reason, detail], …]}. None of that is kept: the next run asks again.
    """
    spec = SourceSpec.model_validate(source)
    batch = [Listed(Item(spec.name, *fields), bytes.fromhex(key)) for fields, key in zip(items, keys, strict=True)]
    store = Workspace.at(workspace)
    ahead = Ahead(open_source(spec, store.spool), [x.item for x in batch])
    options = parse_options(spec, mojibake=mojibake, manner=Manner.from_json(manner))
    reader = _Reader(ahead, options, store)
    sandbox = kept_sandbox(Limits.model_validate(limits))
    with ahead:
        for group in _groups(batch):
            reader.read(group, sandbox)
    reader.write_shard()
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

    def __init__(self, source: Ahead, options: ParseOptions, store: Workspace) -> None:
        self.source = source
        self.options = options
        self.store = store
        self.forgotten = forgotten.read(store).records
        self.changed: list[Listed] = []
        self.unavailable: list[list[str]] = []
        self.refused: list[list[str]] = []
        self._begin()

    def _begin(self) -> None:
        self.gathered_bytes = 0
        self.items: list[Listed] = []  # what the next shard holds; `item` in the tables counts in it
        self.records: list[pa.Table] = [PARSED_RECORDS.empty_table()]
        self.regions: list[pa.Table] = [PARSED_REGIONS.empty_table()]
        self.about: list[pa.Table] = []

    def read(self, group: Sequence[Listed], sandbox: Sandbox) -> None:
        with ExitStack() as stack:
            opened = [(x, file) for x in group if (file := self._open(x, stack)) is not None]
            if opened:
                self._parse(opened, sandbox)

    def write_shard(self) -> None:
        if not self.items:
            return
        keys = [x.key for x in self.items]
        records, regions, about = (pa.concat_tables(t) for t in (self.records, self.regions, self.about))
        tables = shards.build([x.item for x in self.items], keys, records, regions, about)
        self._begin()
        self._write([key.hex() for key in keys], tables)

    def _write(self, name: Any, tables: shards.ShardTables) -> None:
        """name: what tells the shard from others, beside the records in it that are forgotten."""
        blank = forgotten.blanks(tables.records, self.forgotten)
        tables = replace(tables, records=forgotten.blanked(tables.records, self.forgotten))
        folder = self.store.shard(digest_json([READ_VERSION, name, blank]))
        with task_folder(folder, stage="read", items=len(tables.items), **blank) as out:
            shards.write(tables, out)

    def _open(self, x: Listed, stack: ExitStack) -> BinaryIO | None:
        try:
            return stack.enter_context(self.source.open_item(x.item))
        except ItemChanged:
            self.changed.append(x)
        except (ItemUnavailable, TryAgain) as error:
            self.unavailable.append([x.key.hex(), str(error)])
        except ItemRefused as refused:
            self.refused.append([x.key.hex(), refused.reason, refused.detail])
        return None

    def _parse(self, opened: Sequence[tuple[Listed, BinaryIO]], sandbox: Sandbox) -> None:
        before = [os.fstat(file.fileno()) for _, file in opened]
        inputs = [
            ItemInput(file, x.item.path, stat.st_size, x.item.media, x.item.about)
            for (x, file), stat in zip(opened, before, strict=True)
        ]
        for parsed in sandbox.parse_in_parts(inputs, self.options, self.store.root):
            good: list[int] = []
            for n in parsed.items["item"].to_pylist():
                (x, file), stat = opened[n], before[n]
                now = os.fstat(file.fileno())
                if (now.st_size, now.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
                    good.append(n)
                else:  # written to while it was read: what came of it is neither the old item nor the new one
                    self.changed.append(x)
            long = {item.item: item for item in parsed.long}
            self._gather([(n, opened[n][0]) for n in good if n not in long], parsed, len(opened))
            for n in long.keys() & set(good):
                self._write_parts(opened[n][0], long[n], parsed)

    def _gather(self, items: Sequence[tuple[int, Listed]], parsed: Parsed, asked: int) -> None:
        """Add what came of these items to the next shard. items: with their numbers in `parsed`, of `asked`."""
        more = int(row_bytes(parsed.records).sum())
        if self.gathered_bytes + more > SHARD_BYTES:
            self.write_shard()
        number = np.full(asked, -1, np.int32)
        number[[n for n, _ in items]] = np.arange(len(self.items), len(self.items) + len(items))
        numbers = pa.array(number)
        self.items += [x for _, x in items]
        self.records.append(_renumber(parsed.records, numbers))
        self.regions.append(_renumber(parsed.regions, numbers))
        self.about.append(_renumber(parsed.items, numbers))
        self.gathered_bytes += more

    def _write_parts(self, x: Listed, long: LongItem, parsed: Parsed) -> None:
        """Shards of its own for one item."""
        alone = pa.array([0 if n == long.item else -1 for n in range(long.item + 1)], pa.int32())
        regions, about = (_renumber(_up_to(table, long.item), alone) for table in (parsed.regions, parsed.items))
        written = 0
        for part, records in enumerate(_cut(long.records(), SHARD_BYTES)):
            written += len(records)
            tables = shards.build(
                *([x.item], [x.key], _renumber(records, alone), regions, about), part=part, last=written == long.rows
            )
            regions = regions.slice(0, 0)
            self._write([x.key.hex(), part], tables)


def _cut(tables: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """The rows again, in tables that end with the row that reaches so many bytes."""
    gathered: list[pa.Table] = []
    size = 0
    for table in tables:
        while len(table):
            ends = size + np.cumsum(row_bytes(table))
            n = int(np.searchsorted(ends, most)) + 1
            gathered.append(table.slice(0, n))
            size = int(ends[-1])
            if n > len(table):
                break
            yield pa.concat_tables(gathered)
            gathered, size, table = [], 0, table.slice(n)
    if gathered:
        yield pa.concat_tables(gathered)


def _up_to(table: pa.Table, item: int) -> pa.Table:
    return table.filter(pc.less_equal(table["item"], item))


def _renumber(table: pa.Table, numbers: pa.Array) -> pa.Table:
    """The rows of items that are kept, with the item's number in the shard. numbers: int32 by number asked, or -1."""
    position = table.schema.get_field_index("item")
    item = numbers.take(table["item"].combine_chunks())
    return table.set_column(position, table.schema.field(position), item).filter(pc.greater_equal(item, 0))
