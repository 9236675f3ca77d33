"""The privacy stage: where personal data lies in a shard's texts, and how much of which kind each record has.

What follows from it (mask, drop, keep) is decided later, so a changed recipe searches nothing again. Findings are
places, never texts. Of conversations the messages are searched as well, and the tools that they offer, string by
string, because they are what trains; a record's counts are those of its messages and tools there. Cost: see
`sheaf.privacy.find`.

  findings.parquet  a row a finding: row, kind, start, end in UTF-8 bytes of the record's text
  counts.parquet    row-aligned with the shard: an int32 column a kind
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from sheaf.corpus import shards
from sheaf.corpus.decided import Decided
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import checked, task_folder
from sheaf.prepare.rendering import tools_of
from sheaf.privacy import KINDS, counts_by_row, find, masked

__all__ = ["STAGE", "by_source", "counts", "findings", "masked", "masked_messages", "masked_tools", "task"]

STAGE = "privacy-3"  # name and version: part of the folder's name
# Strings of a message that say who speaks, not what is said.
_NOT_SAID = frozenset({"role", "type", "id", "tool_call_id"})


def task(workspace: Workspace, shard: str) -> Task:
    arguments = {"workspace": workspace.where, "shard": shard}
    return Task("sheaf.prepare.protect:protect_shard", arguments, label=f"privacy {shard[:8]}")


def protect_shard(workspace: str, shard: str) -> Json:
    store = Workspace.at(workspace)
    table = shards.read(store.shard(shard), "records", ["text", "messages", "meta"])
    texts, messages, meta = (_one(table[name]) for name in ("text", "messages", "meta"))
    found = find(texts)
    numbers = counts_by_row(found, len(table))
    numbers = _with_messages(numbers, messages, meta)
    with task_folder(store.scores(shard, STAGE), stage="privacy") as out:
        pq.write_table(found, out / "findings.parquet", compression="zstd")
        pq.write_table(numbers, out / "counts.parquet", compression="zstd")
    return {"records": len(table), "findings": len(found)}


def findings(workspace: Workspace, shard: str) -> pa.Table:
    """privacy.FINDINGS of the shard's texts, by row and place."""
    return pq.read_table(checked(workspace.scores(shard, STAGE) / "findings.parquet"))


def counts(workspace: Workspace, shard: str) -> pa.Table:
    """int32, a column a kind of personal data, row-aligned with the shard's records."""
    return pq.read_table(checked(workspace.scores(shard, STAGE) / "counts.parquet"))


def masks(privacy: Mapping[str, str]) -> list[str]:
    """The kinds that the recipe's `prepare.privacy` masks, sorted."""
    return sorted(kind for kind, action in privacy.items() if action == "mask")


def by_source(workspace: Workspace, live_shards: Sequence[str], decided: Decided, names: Sequence[str]) -> Json:
    """{SOURCE: {KIND: {"kept": findings in records that are kept, "all": in all its distinct records}}}.

    Kinds that a source has none of are left out. Memory: one shard's counts.
    """
    total = np.zeros((2, len(names), len(KINDS)), np.int64)
    for number, shard in enumerate(live_shards):
        rows, ranks = decided.rows_of(number)
        if not len(rows):
            continue
        table = counts(workspace, shard)
        found = np.stack([table[kind].to_numpy()[rows] for kind in KINDS], axis=1)
        source, kept = decided.source[ranks], decided.reason[ranks] == 0
        np.add.at(total[0], source, found)
        np.add.at(total[1], source[kept], found[kept])
    return {
        name: {
            kind: {"kept": int(total[1, s, k]), "all": int(total[0, s, k])}
            for k, kind in enumerate(KINDS)
            if total[0, s, k]
        }
        for s, name in enumerate(names)
    }


def masked_messages(messages: pa.LargeStringArray, kinds: Collection[str]) -> pa.LargeStringArray:
    """Conversations as JSON ("" where there is none) with the findings of these kinds in what is said replaced."""
    if not kinds:
        return messages
    trees = [orjson.loads(text) if text else None for text in messages.to_pylist()]
    said = _said(trees)
    texts = pa.array(said, pa.large_string())
    changed = iter(masked(texts, find(texts), kinds).to_pylist())
    filled = (_walk(tree, lambda _: next(changed)) for tree in trees)
    return pa.array(["" if tree is None else orjson.dumps(tree).decode() for tree in filled], pa.large_string())


def masked_tools(tools: list[Any] | None, kinds: Collection[str]) -> list[Any] | None:
    """The tools that a conversation offers, with the findings of these kinds replaced."""
    if not tools or not kinds:
        return tools
    texts = pa.array(_said([tools], frozenset()), pa.large_string())
    changed = iter(masked(texts, find(texts), kinds).to_pylist())
    return _walk(tools, lambda _: next(changed), frozenset())


def _with_messages(numbers: pa.Table, messages: pa.LargeStringArray, meta: pa.StringArray) -> pa.Table:
    """The counts, those of conversations taken from their messages and tools."""
    rows = [row for row, text in enumerate(messages.to_pylist()) if text]
    if not rows:
        return numbers
    said: list[str] = []
    owner: list[int] = []
    for row in rows:
        more = _said([orjson.loads(messages[row].as_py())])
        more += _said([tools_of(meta[row].as_py())], frozenset())
        said += more
        owner += [row] * len(more)
    found = find(pa.array(said, pa.large_string()))
    moved = found.set_column(0, "row", pa.array(np.array(owner, np.int32)[found["row"].to_numpy()]))
    of_messages = counts_by_row(moved, len(numbers))
    columns: dict[str, Any] = {}
    for kind in KINDS:
        column = numbers[kind].to_numpy().copy()
        column[rows] = of_messages[kind].to_numpy()[rows]
        columns[kind] = column
    return pa.table(columns)


def _said(trees: list[Any], skipped: frozenset[str] = _NOT_SAID) -> list[str]:
    """Every string of conversations that trains, in one order. skipped: names of what is not looked into."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    for tree in trees:
        _walk(tree, note, skipped)
    return found


def _walk(value: Any, change: Callable[[str], str], skipped: frozenset[str] = _NOT_SAID) -> Any:
    """The value with its strings changed, always in the same order."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_walk(one, change, skipped) for one in value]
    if isinstance(value, dict):
        return {name: one if name in skipped else _walk(one, change, skipped) for name, one in value.items()}
    return value


def _one(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
