"""The selecting stage: one decision per distinct record, and the byte account of every item.

It sees ids, scores and origins, never texts. Occurrences of all live shards are sorted by (id, source in recipe order,
path, member, locator); the first occurrence speaks for the record, the others are duplicates. So the outcome depends
on the set of occurrences alone, not on shards, workers or order of arrival. Cost: O(n log n) in occurrences, about
100 bytes each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus import shards
from sheaf.corpus.schema import DECISIONS, DROPS, LEDGER, QUARANTINE
from sheaf.corpus.workspace import Workspace
from sheaf.errors import RecipeError, SheafError
from sheaf.formats.schema import ID_BYTES, TEXTUAL
from sheaf.prepare import score
from sheaf.prepare.known import known
from sheaf.recipe import Admit, Length, Recipe
from sheaf.sources.base import Refusal
from sheaf.sources.globs import compile_globs


@dataclass(frozen=True)
class Selection:
    """decisions: sorted by (source, id). ledger: sorted by (source in recipe order, path). quarantine: likewise.
    text_bytes: int64, UTF-8 bytes of each decision's text. content: digest of what was selected and from where.
    """

    decisions: pa.Table
    ledger: pa.Table
    quarantine: pa.Table
    text_bytes: np.ndarray
    content: str


def select(
    workspace: Workspace, live_shards: Sequence[str], live_keys: set[bytes], refusals: Sequence[Refusal], recipe: Recipe
) -> Selection:
    """Decide over all records of the live items."""
    names = [s.name for s in recipe.sources]
    items, places = _live_items(workspace, live_shards, live_keys)
    occurrences = _sorted_occurrences(workspace, live_shards, items, places, names)
    ids = shards.id_bytes(occurrences["id"]) if len(occurrences) else np.zeros(0, "V16")
    first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])) if len(ids) else np.zeros(0, np.int64)
    record = np.cumsum(np.isin(np.arange(len(ids)), first)) - 1  # number of the distinct record of each occurrence
    speaker = occurrences.take(pa.array(first))
    scores = _scores_of(workspace, live_shards, speaker)
    reason = np.array(length_reasons(scores, recipe.prepare.length), np.str_)
    reason[_admitted(recipe.prepare.admit, reason, items, occurrences["live"].to_numpy(), record)] = ""
    kept = reason == ""
    outcome = _outcomes(kept[record], np.isin(np.arange(len(ids)), first), recipe.prepare.dedup.exact)
    ledger = _ledger(items, occurrences, outcome, refusals, names)
    quarantine = _quarantine(workspace, live_shards, items, refusals, names)
    decisions = pa.table(
        {
            "id": speaker["id"],
            "source": speaker["source"],
            "shard": speaker["shard"],
            "row": speaker["row"],
            "kept": kept,
            "reason": pa.array(reason, pa.string()),
            "of": pa.nulls(len(first), pa.binary(ID_BYTES)),
            "detail": pa.array([""] * len(first), pa.string()),
            "occurrences": np.bincount(record, minlength=len(first)).astype(np.int32),
        }
    ).cast(DECISIONS)
    order = pc.sort_indices(
        decisions.select(["source", "id"]).set_column(1, "id", decisions["id"].cast(pa.binary())),
        sort_keys=[("source", "ascending"), ("id", "ascending")],
    )
    return Selection(
        decisions=decisions.take(order),
        ledger=ledger,
        quarantine=quarantine,
        text_bytes=scores["bytes"].to_numpy()[order.to_numpy()],
        content=_content_digest(names, occurrences, outcome, quarantine),
    )


KEPT, DUPLICATE, DROPPED = 0, 1, 2


def check_admit(rules: Sequence[Admit], sources: Sequence[str]) -> None:
    """Raise RecipeError for a reason or a source that there is not: it would admit nothing, in silence."""
    for rule in rules:
        if rule.source is not None and rule.source not in sources:
            near = get_close_matches(rule.source, sources, 1)
            raise RecipeError(
                f"no source is called '{rule.source}'",
                where=f"prepare.admit, path: {rule.path}",
                why=f"the sources are {', '.join(sources)}",
                fix=f"write '{near[0]}'" if near else "name one of them, or leave `source` out for all",
            )
        if rule.reason is not None and rule.reason.partition(":")[0] not in DROPS:
            raise RecipeError(
                f"no record is dropped as '{rule.reason}'",
                where=f"prepare.admit, path: {rule.path}",
                fix=f"reasons are {', '.join(DROPS)}; what was quarantined is admitted by encoding, format or limits",
            )


def idle_rules(rules: Sequence[Admit], places: Sequence[tuple[str, str]]) -> list[Admit]:
    """The rules that match no item. places: source and path of every item."""
    return [rule for rule in rules if not any(_matches(rule, places))]


def length_reasons(scores: pa.Table, rule: Length) -> list[str]:
    """ "" or the reason why a record is dropped, for each row of scores."""
    characters, words = scores["characters"].to_numpy(), scores["words"].to_numpy()
    textual = pc.is_in(scores["kind"], pa.array(TEXTUAL)).to_numpy()
    short = textual & ((characters < rule.min_characters) | (words < rule.min_words))
    long = np.zeros_like(short) if rule.max_characters is None else textual & (characters > rule.max_characters)
    return np.where(short, "too-short", np.where(long, "too-long", "")).tolist()


def _admitted(
    rules: Sequence[Admit], reason: np.ndarray, items: pa.Table, live: np.ndarray, record: np.ndarray
) -> np.ndarray:
    """bool per distinct record: whether a rule lets it pass, because it lies in an item that the rule matches.

    live, record: the row of items and the number of the distinct record of each occurrence.
    """
    result = np.zeros(len(reason), bool)
    for rule in rules:
        if rule.reason is None:
            continue
        places = zip(items["source"].to_pylist(), items["path"].to_pylist(), strict=True)
        matches = np.fromiter(_matches(rule, places), bool)
        inside = np.zeros(len(reason), bool)
        inside[record[matches[live]]] = True
        named = (reason == rule.reason) | np.char.startswith(reason, f"{rule.reason}:")
        result |= inside & named
    return result


def _matches(rule: Admit, places: Iterable[tuple[str, str]]) -> Iterator[bool]:
    glob = compile_globs([rule.path])
    return (rule.source in (None, s) and glob.fullmatch(p) is not None for s, p in places)


def _outcomes(record_kept: np.ndarray, speaks: np.ndarray, exact: bool) -> np.ndarray:
    """int8 per occurrence. Without exact dedup every occurrence of a kept record is kept."""
    kept = record_kept & speaks if exact else record_kept
    return np.where(kept, KEPT, np.where(record_kept, DUPLICATE, DROPPED)).astype(np.int8)


@dataclass(frozen=True)
class _Places:
    """Where the live items lie: shard number, row of its items table, and the item's row in the table of live items."""

    shard: np.ndarray
    row: np.ndarray
    live: np.ndarray


def _live_items(workspace: Workspace, live_shards: Sequence[str], live_keys: set[bytes]) -> tuple[pa.Table, _Places]:
    """The live items over all shards, each once, with the shard of its regions; and where the parts of each lie."""
    rows = known(workspace, live_keys, live_shards).rows
    tables: list[pa.Table] = []
    for number, shard in enumerate(live_shards):
        table = shards.read(workspace.shard(shard), "items").take(pa.array(rows.get(shard, []), pa.int64()))
        tables.append(table.append_column("shard", pa.array(np.full(len(table), number, np.int32))))
    table = pa.concat_tables(tables).combine_chunks()
    here = np.concatenate([np.array(rows.get(shard, []), np.int64) for shard in live_shards])
    keys, head = shards.id_bytes(table["key"]), table["part"].to_numpy() == 0
    live = np.cumsum(head) - 1
    later = np.flatnonzero(~head)
    if len(later):
        line = dict(zip(keys[head].tolist(), live[head].tolist(), strict=True))
        live[later] = [line[key] for key in keys[later].tolist()]
    items = table.filter(pa.array(head))
    for name in ("size", "structure_bytes", "record_bytes", "quarantined_bytes", "records", "quarantined"):
        total = np.zeros(len(items), np.int64)
        np.add.at(total, live, table[name].to_numpy())
        items = items.set_column(items.schema.get_field_index(name), name, pa.array(total))
    return items.combine_chunks(), _Places(table["shard"].to_numpy(), here, live)


def _sorted_occurrences(
    workspace: Workspace, live_shards: Sequence[str], items: pa.Table, places: _Places, names: list[str]
) -> pa.Table:
    """One row per live occurrence: id, source (index), shard, row, live (row of items), path, member, locator, …"""
    live_of = _live_numbers(places, len(live_shards))
    tables = [_occurrences(workspace, shard, number, live_of[number]) for number, shard in enumerate(live_shards)]
    table = pa.concat_tables(tables)
    source_of_item = pc.index_in(items["source"], pa.array(names)).cast(pa.int32())
    table = table.append_column("source", source_of_item.take(table["live"]))
    table = table.append_column("path", items["path"].take(table["live"]))
    keys = ["id", "source", "path", "member", "locator"]
    sortable = table.select(keys).set_column(0, "id", table["id"].cast(pa.binary()))
    return table.take(pc.sort_indices(sortable, sort_keys=[(k, "ascending") for k in keys])).combine_chunks()


def _live_numbers(places: _Places, n_shards: int) -> list[np.ndarray]:
    """For each shard: row of its items table → row of the live items, or -1."""
    bounds = np.searchsorted(places.shard, np.arange(n_shards + 1))
    result: list[np.ndarray] = []
    for start, end in pairwise(bounds.tolist()):
        numbers = np.full(int(places.row[end - 1]) + 1 if end > start else 0, -1, np.int64)
        numbers[places.row[start:end]] = places.live[start:end]
        result.append(numbers)
    return result


def _occurrences(workspace: Workspace, shard: str, number: int, live_of: np.ndarray) -> pa.Table:
    table = shards.read(workspace.shard(shard), "records", ["id", "origins"])
    row = pc.list_parent_indices(table["origins"]).combine_chunks()
    origins = table["origins"].combine_chunks().flatten()
    item = origins.field("item").to_numpy()
    live = np.full(len(item), -1, np.int64)
    inside = item < len(live_of)
    live[inside] = live_of[item[inside]]
    occurrences = pa.table(
        {
            "id": table["id"].take(row),
            "shard": pa.array(np.full(len(item), number, np.int32)),
            "row": row.cast(pa.int32()),
            "live": pa.array(live),
            "member": origins.field("member"),
            "locator": origins.field("locator"),
            "bytes": origins.field("bytes"),
        }
    )
    return occurrences.filter(pa.array(live >= 0))


def _scores_of(workspace: Workspace, live_shards: Sequence[str], rows: pa.Table) -> pa.Table:
    """The scores of chosen rows, in their order."""
    tables = [score.read(workspace, shard) for shard in live_shards]
    start = np.cumsum([0] + [len(t) for t in tables])
    at = start[rows["shard"].to_numpy()] + rows["row"].to_numpy()
    return pa.concat_tables(tables).take(pa.array(at)).combine_chunks()


def _ledger(
    items: pa.Table, occurrences: pa.Table, outcome: np.ndarray, refusals: Sequence[Refusal], names: list[str]
) -> pa.Table:
    live, size, n = occurrences["live"].to_numpy(), occurrences["bytes"].to_numpy(), len(items)

    def total(kind: int, weight: np.ndarray) -> np.ndarray:
        result = np.zeros(n, np.int64)
        chosen = outcome == kind
        np.add.at(result, live[chosen], weight[chosen])
        return result

    one = np.ones(len(live), np.int64)
    table = pa.table(
        {
            **{
                name: items[name]
                for name in ("source", "path", "uri", "version", "about", "digest", "claimed", "media", "size")
            },
            "kept_bytes": items["structure_bytes"].to_numpy() + total(KEPT, size),
            "dropped_bytes": total(DUPLICATE, size) + total(DROPPED, size),
            "quarantined_bytes": items["quarantined_bytes"],
            "records": items["records"],
            "kept": total(KEPT, one),
            "duplicate": total(DUPLICATE, one),
            "dropped": total(DROPPED, one),
            "quarantined": items["quarantined"],
            "notes": items["notes"],
        }
    ).cast(LEDGER)
    table = pa.concat_tables([table, _refused(refusals)])
    _check_conservation(table)
    return _by_source(table, names)


def _refused(refusals: Sequence[Refusal]) -> pa.Table:
    rows = [
        {
            **{
                "source": r.source,
                "path": r.path,
                "uri": r.uri,
                "version": "",
                "about": "",
                "digest": "",
                "claimed": "",
                "media": "",
            },
            **{"size": r.size, "kept_bytes": 0, "dropped_bytes": 0, "quarantined_bytes": r.size},
            **{"records": 0, "kept": 0, "duplicate": 0, "dropped": 0, "quarantined": 1, "notes": r.reason},
        }
        for r in refusals
    ]
    return pa.Table.from_pylist(rows, schema=LEDGER)


def _check_conservation(ledger: pa.Table) -> None:
    columns = ("kept_bytes", "dropped_bytes", "quarantined_bytes")
    out = np.sum([ledger[name].to_numpy() for name in columns], axis=0)
    wrong = np.flatnonzero(ledger["size"].to_numpy() != out)
    if len(wrong):
        row = ledger.slice(int(wrong[0]), 1).to_pylist()[0]
        raise SheafError(
            "the ledger does not add up; nothing was committed",
            where=f"{row['source']}: {row['uri']}",
            why=f"{row['size']} bytes in, {int(out[wrong[0]])} bytes accounted for",
            fix="this is a defect of Sheaf: please report it with the item",
        )


def _by_source(table: pa.Table, names: list[str]) -> pa.Table:
    rank = pc.index_in(table["source"], pa.array(names))
    extra = [name for name in ("member", "locator") if name in table.column_names]
    keyed = table.append_column("rank", rank)
    order = pc.sort_indices(keyed, sort_keys=[(k, "ascending") for k in ("rank", "path", *extra)])
    return table.take(order)


def _quarantine(
    workspace: Workspace, live_shards: Sequence[str], items: pa.Table, refusals: Sequence[Refusal], names: list[str]
) -> pa.Table:
    live = set(zip(*(items[c].to_pylist() for c in ("shard", "source", "path", "version")), strict=True))
    tables: list[pa.Table] = []
    for number, shard in enumerate(live_shards):
        table = shards.read(workspace.shard(shard), "quarantine")
        rows = zip(*(table[c].to_pylist() for c in ("source", "path", "version")), strict=True)
        tables.append(table.filter(pa.array([(number, *row) in live for row in rows], pa.bool_())))
    refused = [
        {
            **{"source": r.source, "path": r.path, "uri": r.uri, "version": "", "member": "", "locator": "{}"},
            **{"bytes": r.size, "reason": r.reason, "detail": r.detail},
        }
        for r in refusals
    ]
    return _by_source(pa.concat_tables([*tables, pa.Table.from_pylist(refused, schema=QUARANTINE)]), names)


def _content_digest(names: list[str], occurrences: pa.Table, outcome: np.ndarray, quarantine: pa.Table) -> str:
    """What was selected, from where, free of machine paths, versions, times and grouping."""
    h = hashlib.blake2b(digest_size=16)
    h.update(repr(names).encode())
    h.update(outcome.tobytes())
    h.update(shards.id_bytes(occurrences["id"]).tobytes() if len(occurrences) else b"")
    h.update(occurrences["source"].to_numpy().tobytes())
    for table, columns in (
        (occurrences, ("path", "member", "locator")),
        (quarantine, ("source", "path", "member", "locator", "reason")),
    ):
        for name in columns:
            _hash_strings(h, table[name])
    return h.hexdigest()


def _hash_strings(h: hashlib.blake2b, column: pa.ChunkedArray) -> None:
    h.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
    for chunk in column.chunks:
        offsets, data = chunk.buffers()[1:]
        if len(chunk) and data is not None:
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            h.update(memoryview(data)[ends[0] : ends[-1]])
