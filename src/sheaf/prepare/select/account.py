"""What became of everything, item by item and in sums; and the proof that nothing is missing.

Bytes: of every item, size = kept + dropped + quarantined. Records: of every item, of every source and over all, read =
kept + duplicates + dropped (by reason) + quarantined. Checked before a version is committed: a version that does not
add up is not made. Memory: per item, and sources × reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sheaf.corpus.columns import Array, chunks, release
from sheaf.corpus.decided import KEPT as KEPT_DECISION
from sheaf.corpus.decided import NEAR, Decided
from sheaf.corpus.forgotten import REASON as FORGOTTEN
from sheaf.corpus.schema import LEDGER
from sheaf.errors import SheafError
from sheaf.prepare.select.fold import HashedStrings, Records
from sheaf.prepare.select.items import LiveItems, by_source
from sheaf.sources.base import Refusal

KEPT, DUPLICATE, DROPPED = 0, 1, 2
Json = dict[str, Any]


@dataclass
class Outcomes:
    """What became of the occurrences. records, size: int64 (3, items), by outcome. dropped: int64 (sources, reasons),
    occurrences. repeats: int64 (sources, sources), occurrences of the one that repeat a record of the other.
    """

    records: Array
    size: Array
    dropped: Array
    repeats: Array
    digest: str


def outcomes(records: Records, decided: Decided, items: LiveItems, exact: bool) -> Outcomes:
    """exact: repeats of a kept record are duplicates; otherwise each of them is kept."""
    n = len(decided.first) - 1
    h = hashlib.blake2b(digest_size=16)
    total = Outcomes(
        records=np.zeros((3, len(items)), np.int64),
        size=np.zeros((3, len(items)), np.int64),
        dropped=np.zeros((n, len(decided.reasons)), np.int64),
        repeats=np.zeros((n, n), np.int64),
        digest="",
    )
    for piece in records.pieces():
        reason = decided.reason[piece.rank]
        outcome = _outcome(reason == 0, piece.speaks, exact)
        h.update(outcome.tobytes())
        np.add.at(total.records, (outcome, piece.live), 1)
        np.add.at(total.size, (outcome, piece.live), piece.size)
        source = items.source[piece.live]
        lost, again = outcome == DROPPED, outcome == DUPLICATE
        np.add.at(total.dropped, (source[lost], reason[lost]), 1)
        np.add.at(total.repeats, (source[again], decided.source[piece.rank[again]]), 1)
        release(decided.reason, decided.source)
    total.digest = h.hexdigest()
    return total


def ledger_of(items: LiveItems, outcomes: Outcomes, refusals: Sequence[Refusal], names: Sequence[str]) -> pa.Table:
    table, size, records = items.table, outcomes.size, outcomes.records
    same = ("key", "source", "path", "uri", "version", "about", "digest", "claimed", "media", "size")
    lines = pa.table(
        {
            **{name: table[name] for name in same},
            "kept_bytes": table["structure_bytes"].to_numpy() + size[KEPT],
            "dropped_bytes": size[DUPLICATE] + size[DROPPED],
            "quarantined_bytes": table["quarantined_bytes"],
            "records": table["records"],
            "kept": records[KEPT],
            "duplicate": records[DUPLICATE],
            "dropped": records[DROPPED],
            "quarantined": table["quarantined"],
            "notes": table["notes"],
        }
    ).cast(LEDGER)
    return by_source(pa.concat_tables([lines, _refused(refusals)]), names)


def counts_of(ledger: pa.Table, outcomes: Outcomes, decided: Decided, names: Sequence[str]) -> Json:
    """For the manifest: {"records": RECORDS, "sources": {NAME: {"records": RECORDS, "decisions": {REASON: n}}},
    "overlap": [{"source", "of", "exact", "near"}]}, to which select adds "near_limited": records that stayed without
    being compared with all that might be like them. RECORDS: {"read", "kept", "duplicate", "quarantined", "dropped":
    {REASON: n}}, of occurrences; decisions are of distinct records, and those that are kept have the reason "kept".
    """
    source = np.array(ledger["source"].to_pylist(), object)
    per_source = [ledger.filter(pa.array(source == name)) for name in names]
    sources = {
        name: {
            "records": _records(lines, outcomes.dropped[number], decided.reasons),
            "decisions": _decisions(decided, number),
        }
        for number, (name, lines) in enumerate(zip(names, per_source, strict=True))
    }
    records = _records(ledger, outcomes.dropped.sum(axis=0), decided.reasons)
    return {"records": records, "sources": sources, "overlap": _overlap(outcomes.repeats, decided, names)}


def check(ledger: pa.Table, counts: Json) -> None:
    """Raise SheafError if bytes or records of an item, a source or the whole do not add up."""
    _check_items(ledger, "size", ("kept_bytes", "dropped_bytes", "quarantined_bytes"), "bytes")
    _check_items(ledger, "records", ("kept", "duplicate", "dropped"), "records")
    for where, found in (*counts["sources"].items(), ("all sources", counts)):
        told = found["records"]
        out = told["kept"] + told["duplicate"] + told["quarantined"] + sum(told["dropped"].values())
        if told["read"] != out:
            raise _unbalanced(where, told["read"], out, "records")


def _outcome(kept: Array, speaks: Array, exact: bool) -> Array:
    """int8 per occurrence. Without exact dedup every occurrence of a kept record is kept."""
    return np.where(kept & speaks if exact else kept, KEPT, np.where(kept, DUPLICATE, DROPPED)).astype(np.int8)


def _records(lines: pa.Table, dropped: Array, reasons: Sequence[str]) -> Json:
    total = {name: int(np.sum(lines[name].to_numpy())) for name in ("records", "kept", "duplicate", "quarantined")}
    by_reason = {reasons[code]: int(dropped[code]) for code in np.flatnonzero(dropped).tolist()}
    return {
        "read": total["records"] + total["quarantined"],
        "kept": total["kept"],
        "duplicate": total["duplicate"],
        "quarantined": total["quarantined"],
        "dropped": dict(sorted(by_reason.items())),
    }


def _decisions(decided: Decided, source: int) -> Json:
    n = np.zeros(len(decided.reasons), np.int64)
    for a, b in _of_source(decided, source):
        n += np.bincount(decided.reason[a:b], minlength=len(n))
        release(decided.reason)
    found = {decided.reasons[code] or KEPT_DECISION: int(n[code]) for code in np.flatnonzero(n).tolist()}
    return dict(sorted(found.items()))


def _overlap(repeats: Array, decided: Decided, names: Sequence[str]) -> list[Json]:
    """Between each two sources (and inside each): records of the one that repeat, or are like, one of the other."""
    near = np.zeros_like(repeats)
    for source in range(len(names)) if NEAR in decided.reasons else ():
        for a, b in _of_source(decided, source):
            of = decided.of[a:b]
            near[source] += np.bincount(decided.source[of[of >= 0]], minlength=len(names))
    return [
        {"source": names[a], "of": names[b], "exact": int(repeats[a, b]), "near": int(near[a, b])}
        for a, b in np.argwhere((repeats > 0) | (near > 0)).tolist()
    ]


def _of_source(decided: Decided, source: int) -> Iterator[tuple[int, int]]:
    """The ranks of a source, piece by piece."""
    start, stop = decided.first[source : source + 2].tolist()
    return ((start + a, start + b) for a, b in chunks(stop - start))


def content_digest(names: Sequence[str], seen: str, outcomes: Outcomes, quarantine: pa.Table) -> str:
    """What was selected, from where, free of machine paths, versions, times and grouping."""
    h = hashlib.blake2b(repr((list(names), seen, outcomes.digest)).encode(), digest_size=16)
    for name in ("source", "path", "member", "locator", "reason"):
        strings = HashedStrings()
        strings.update(quarantine[name])
        h.update(strings.digest().encode())
    return h.hexdigest()


def _check_items(ledger: pa.Table, whole: str, parts: tuple[str, ...], unit: str) -> None:
    out = np.sum([ledger[name].to_numpy() for name in parts], axis=0)
    wrong = np.flatnonzero(ledger[whole].to_numpy() != out)
    if len(wrong):
        row = ledger.slice(int(wrong[0]), 1).to_pylist()[0]
        raise _unbalanced(f"{row['source']}: {row['uri']}", row[whole], int(out[wrong[0]]), unit)


def _unbalanced(where: str, inside: int, out: int, unit: str) -> SheafError:
    return SheafError(
        "the ledger does not add up; nothing was committed",
        where=where,
        why=f"{inside} {unit} in, {out} {unit} accounted for",
        fix="this is a defect of Sheaf: please report it with the item",
    )


def _lost(refusal: Refusal) -> Json:
    """What was forgotten is dropped: nobody could mend it."""
    forgotten = refusal.reason == FORGOTTEN
    return {
        "dropped_bytes": refusal.size if forgotten else 0,
        "quarantined_bytes": 0 if forgotten else refusal.size,
        "quarantined": int(not forgotten),
    }


def _refused(refusals: Sequence[Refusal]) -> pa.Table:
    nothing = {name: "" for name in ("version", "about", "digest", "claimed", "media")}
    none = {name: 0 for name in ("kept_bytes", "records", "kept", "duplicate", "dropped")}
    rows = [
        {
            **{"key": None, "source": r.source, "path": r.path, "uri": r.uri, "size": r.size, "notes": r.reason},
            **(nothing | none),
            **_lost(r),
        }
        for r in refusals
    ]
    return pa.Table.from_pylist(rows, schema=LEDGER)
