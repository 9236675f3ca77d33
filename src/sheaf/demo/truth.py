"""What the demo knows about its own data, and whether the ledger agrees.

The truth is written down while the data is planted, from the planter's own view: which texts went into which item, and
what is broken there. It shares no code with the rooms that it judges: equal texts are found by its own simple normal
form, sizes come from the files. What must agree: every item in the ledger exactly once, with the size that it has;
bytes in = kept + dropped + quarantined, to the byte; the records, kept, duplicate and dropped of every item; the
reasons of everything planted broken, the exact bytes where they are known, and nothing else quarantined; and every text
that can be known exactly, present under the id that its content gives.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from sheaf import files

COUNTS = ("records", "kept", "duplicate", "dropped", "quarantined")


@dataclass(frozen=True, slots=True)
class Planted:
    """One item. texts: the key of each record in it, in any order; a key that starts with "~" stands for a text that
    only a reader can know exactly (the main text of a page). short: those keys of texts below the length rule.
    reasons: code → number of regions. lost: their bytes, or None if that is a matter of the reader's taste.
    """

    source: str
    path: str
    size: int
    texts: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    lost: int | None = 0


@dataclass(frozen=True)
class Truth:
    """sources: names in recipe order: of equal texts, the first in that order is the one that is kept."""

    sources: tuple[str, ...]
    items: tuple[Planted, ...]

    def save(self, path: Path) -> None:
        totals = {source: {**counts} for source, counts in self.counts().items()}
        value = {"sources": self.sources, "totals": totals, "items": [asdict(i) for i in self.items]}
        files.write_json(path, value)

    @staticmethod
    def load(path: Path) -> Truth:
        value = orjson.loads(path.read_bytes())
        return Truth(tuple(value["sources"]), tuple(_planted(i) for i in value["items"]))

    def by_item(self) -> dict[tuple[str, str], Counter[str]]:
        """COUNTS of every item, in the order in which places speak for a text: source in recipe order, then path."""
        rank = {name: n for n, name in enumerate(self.sources)}
        seen: set[str] = set()
        result: dict[tuple[str, str], Counter[str]] = {}
        for item in sorted(self.items, key=lambda i: (rank[i.source], i.path.encode())):
            counts = Counter({"records": len(item.texts), "quarantined": sum(item.reasons.values())})
            for text in item.texts:
                counts["dropped" if text in item.short else "duplicate" if text in seen else "kept"] += 1
                seen.add(text)
            result[item.source, item.path] = counts
        return result

    def counts(self) -> dict[str, Counter[str]]:
        """By source: COUNTS, items and bytes."""
        by_item = self.by_item()
        result: dict[str, Counter[str]] = {name: Counter() for name in self.sources}
        for item in self.items:
            result[item.source].update(by_item[item.source, item.path])
            result[item.source].update({"items": 1, "bytes": item.size})
        return result


def _planted(value: dict[str, Any]) -> Planted:
    texts: tuple[str, ...] = tuple(value.pop("texts"))
    short: tuple[str, ...] = tuple(value.pop("short"))
    return Planted(texts=texts, short=short, **value)


def key_of(text: str) -> str:
    """The id that a record with this text should have: blake2b-128 of its kind and normal form."""
    return hashlib.blake2b(b"text\0" + text.encode(), digest_size=16).hexdigest()


def compare(truth: Truth, root: Path) -> list[str]:
    """What the corpus folder's ledger says otherwise, one sentence each; empty if all agrees."""
    ledger = pq.read_table(root / "ledger.parquet").to_pylist()
    quarantine = pq.read_table(root / "quarantine.parquet").to_pylist()
    decisions = pq.read_table(root / "decisions.parquet", columns=["id", "kept"])
    rows = {(row["source"], row["path"]): row for row in ledger}
    return [
        *_presence(truth, ledger, rows),
        *_accounts(truth, rows),
        *_regions(truth, rows, quarantine),
        *_totals(truth, ledger),
        *_texts(truth, decisions),
    ]


def _presence(truth: Truth, ledger: Sequence[dict[str, Any]], rows: Mapping[tuple[str, str], Any]) -> Iterable[str]:
    planted = {(item.source, item.path) for item in truth.items}
    for place, n in Counter((row["source"], row["path"]) for row in ledger).items():
        if n > 1:
            yield f"{_name(place)} is in the ledger {n} times"
        if place not in planted:
            yield f"{_name(place)} is in the ledger but was not planted"
    for place in sorted(planted - rows.keys()):
        yield f"{_name(place)} was planted but is not in the ledger"


def _accounts(truth: Truth, rows: Mapping[tuple[str, str], dict[str, Any]]) -> Iterable[str]:
    by_item = truth.by_item()
    for item in truth.items:
        row = rows.get((item.source, item.path))
        if row is None:
            continue
        name = _name((item.source, item.path))
        if row["size"] != item.size:
            yield f"{name}: {item.size} bytes planted, {row['size']} in the ledger"
        out = row["kept_bytes"] + row["dropped_bytes"] + row["quarantined_bytes"]
        if out != item.size:
            yield f"{name}: {item.size} bytes in, {out} accounted for"
        if item.lost is not None and row["quarantined_bytes"] != item.lost:
            yield f"{name}: {item.lost} bytes are broken, {row['quarantined_bytes']} quarantined"
        for what in COUNTS:
            if row[what] != by_item[item.source, item.path][what]:
                yield f"{name}: {what} should be {by_item[item.source, item.path][what]}, is {row[what]}"


def _regions(truth: Truth, rows: Mapping[tuple[str, str], Any], quarantine: Sequence[dict[str, Any]]) -> Iterable[str]:
    found: dict[tuple[str, str], Counter[str]] = {}
    for region in quarantine:
        found.setdefault((region["source"], region["path"]), Counter())[region["reason"]] += 1
    for item in truth.items:
        place = (item.source, item.path)
        reasons = found.pop(place, Counter())
        if place in rows and reasons != Counter(item.reasons):
            yield f"{_name(place)}: quarantined should be {dict(item.reasons) or 'nothing'}, is {dict(reasons)}"
    for place, reasons in found.items():
        yield f"{_name(place)} is quarantined ({', '.join(reasons)}) but was not planted"


def _totals(truth: Truth, ledger: Sequence[dict[str, Any]]) -> Iterable[str]:
    for source, expected in truth.counts().items():
        rows = [row for row in ledger if row["source"] == source]
        if len(rows) != expected["items"]:
            yield f"source {source}: {expected['items']} items planted, {len(rows)} in the ledger"
        for what in COUNTS:
            if sum(row[what] for row in rows) != expected[what]:
                yield f"source {source}: {what} should be {expected[what]}, is {sum(row[what] for row in rows)}"


def _texts(truth: Truth, decisions: pa.Table) -> Iterable[str]:
    kept = dict(zip(decisions["id"].to_pylist(), decisions["kept"].to_pylist(), strict=True))
    for item in truth.items:
        for text in item.texts:
            if not text.startswith("~") and kept.get(bytes.fromhex(text)) is not (text not in item.short):
                yield f"{_name((item.source, item.path))}: a text is not in the corpus as it was planted ({text})"


def _name(place: tuple[str, str]) -> str:
    return f"{place[0]}: {place[1]}"
