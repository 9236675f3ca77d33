"""Real examples of what a reason dropped: where the record lies, the scores that decided, and how it begins.

Examples are taken from every source in turn, by record id, so that they are a fair and repeatable sample: an id is a
hash of the content. Whatever is quoted has its personal data and secrets masked, whatever the recipe says. A near
duplicate comes with the record that is kept in its place.
Cost: a pass over the decisions, and one row group of records and a shard's score columns an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sheaf import privacy
from sheaf.corpus.decided import NEAR
from sheaf.corpus.schema import DROPS
from sheaf.corpus.shards import id_bytes
from sheaf.corpus.version import CorpusVersion, read_rows
from sheaf.errors import UsageError
from sheaf.formats.schema import ID_BYTES
from sheaf.prepare.rules import Rule, Rules, rules_of

Json = dict[str, Any]
EXCERPT = 600  # characters of a record that are quoted


def examples(
    corpus: CorpusVersion, reason: str, *, source: str | None = None, limit: int = 5, excerpt: int = EXCERPT
) -> Json:
    """{"corpus", "reason", "meaning", "count", "examples": [{"record", "source", "uri", "path", "member", "locator",
    "reason", "detail", "scores": {NAME: value}, "excerpt"}]}; of a near duplicate also "of", which has "record",
    "source", "uri", "path", "member", "locator" and "excerpt", and its detail is their similarity.

    reason: a whole one ("gopher:words"), or what is before its colon. count: distinct records that were dropped so.
    Raises UsageError for a reason or a source that there is not.
    """
    check(corpus, reason, source)
    count, chosen = _chosen(corpus, reason, source, limit)
    rules = rules_of(corpus)
    found = [_example(corpus, rules, row, excerpt) for row in chosen]
    _add_kept(corpus, chosen, found, excerpt)
    meaning = DROPS.get(reason.partition(":")[0], "")
    return {"corpus": corpus.digest, "reason": reason, "meaning": meaning, "count": count, "examples": found}


def kept(corpus: CorpusVersion, limit: int, excerpt: int = EXCERPT) -> list[Json]:
    """Some records that are kept, from every source in turn: where each lies, and how it begins."""
    _, chosen = _chosen(corpus, "", None, limit)
    return [_place(corpus, row, excerpt) for row in chosen]


def clusters(corpus: CorpusVersion, limit: int, members: int = 2, excerpt: int = EXCERPT) -> list[Json]:
    """The largest groups of near duplicates: [{"size", "kept": as in `kept`, "dropped": some of the others}].

    size: with the kept one. Memory: 16 bytes a near duplicate.
    """
    pieces = [np.zeros(0, "S16")]
    for batch in corpus.decision_batches(["of"]):
        pieces.append(id_bytes(batch["of"].drop_null()).view("S16"))
    ids, sizes = np.unique(np.concatenate(pieces), return_counts=True)
    largest = np.lexsort((ids, -sizes))[:limit]
    wanted = [bytes(i).ljust(ID_BYTES, b"\0") for i in ids[largest].tolist()]
    kept_one = {row["id"]: _place(corpus, row, excerpt) for row in _decisions_of(corpus, set(wanted), "id")}
    others: dict[bytes, list[Json]] = {i: [] for i in wanted}
    for row in _decisions_of(corpus, set(wanted), "of"):
        if len(others[row["of"]]) < members:
            others[row["of"]].append(_place(corpus, row, excerpt))
    counted = zip(wanted, (sizes[largest] + 1).tolist(), strict=True)
    return [{"size": size, "kept": kept_one[i], "dropped": others[i]} for i, size in counted]


def counts(corpus: CorpusVersion) -> Json:
    """{"corpus", "sources": {NAME: {REASON: distinct records}}, "privacy": {NAME: {KIND: {"kept", "all"}}}}: what there
    are examples of, kept records too, and how often personal data was found if the recipe asks."""
    told = corpus.manifest["counts"]
    decisions = {name: about["decisions"] for name, about in told["sources"].items()}
    return {"corpus": corpus.digest, "sources": decisions, "privacy": told.get("privacy", {})}


def check(corpus: CorpusVersion, reason: str, source: str | None) -> None:
    """Nothing found must mean that nothing was dropped so, never that a word was misspelt."""
    names = corpus.source_names
    if source is not None and source not in names:
        raise UsageError(f"no source is called '{source}'", fix=f"the sources are {', '.join(names)}")
    if reason.partition(":")[0] in DROPS:
        return
    here = {r for told in counts(corpus)["sources"].values() for r in told} - {"kept"}
    near = get_close_matches(reason, [*DROPS, *here], 1)
    raise UsageError(
        f"no record is ever dropped for a reason '{reason}'",
        why=f"here there are: {', '.join(sorted(here)) or 'none; nothing was dropped'}",
        fix=f"did you mean '{near[0]}'?" if near else "`sheaf show` lists the reasons",
    )


def shown(text: str, length: int = EXCERPT) -> str:
    """The beginning of a text with everything personal or secret in it masked."""
    return privacy.excerpt(text, length)


def _chosen(corpus: CorpusVersion, reason: str, source: str | None, limit: int) -> tuple[int, list[Json]]:
    """How many decisions there are, and some of them: the first of each source in turn."""
    count, by_source = 0, dict[int, list[Json]]()
    wanted = None if source is None else corpus.source_names.index(source)
    for batch in corpus.decision_batches(["id", "source", "shard", "row", "reason", "of", "detail"]):
        table = pa.Table.from_batches([batch])
        same = pc.or_(pc.equal(table["reason"], reason), pc.starts_with(table["reason"], f"{reason}:"))
        table = table.filter(same if wanted is None else pc.and_(same, pc.equal(table["source"], wanted)))
        count += len(table)
        for number in pc.unique(table["source"]).to_pylist():
            mine = by_source.setdefault(number, [])
            if len(mine) < limit:
                mine += table.filter(pc.equal(table["source"], number)).slice(0, limit - len(mine)).to_pylist()
    turns = zip_longest(*(by_source[number] for number in sorted(by_source)))
    return count, [row for turn in turns for row in turn if row is not None][:limit]


def _example(corpus: CorpusVersion, rules: Rules, row: Json, excerpt: int) -> Json:
    deciding = [rule for rule in rules.rules if rule.reason == row["reason"]]
    about = _place(corpus, row, excerpt)
    about |= {"reason": row["reason"], "detail": row["detail"], "scores": _scores(corpus, rules, deciding, row)}
    return about | {"excerpt": about.pop("excerpt")}


def _place(corpus: CorpusVersion, row: Json, excerpt: int) -> Json:
    """A record by a row of the decisions: where it lies, and how it begins."""
    (record,) = read_rows(corpus.shard_path(row["shard"]), [row["row"]], ["id", "text", "origins"])
    origin = record["origins"][0]
    place = {name: origin[name] for name in ("source", "uri", "path", "member")}
    about = {"record": record["id"].hex(), **place, "locator": orjson.loads(origin["locator"])}
    return about | {"excerpt": shown(record["text"], excerpt)}


def _scores(corpus: CorpusVersion, rules: Rules, deciding: Sequence[Rule], row: Json) -> Json:
    names = dict.fromkeys(name for rule in deciding for name in rule.columns if name != "kind")
    if not names:
        return {}
    table = rules.read(corpus.workspace, corpus.shard_names[row["shard"]]).select(list(names))
    return table.slice(row["row"], 1).to_pylist()[0]


def _add_kept(corpus: CorpusVersion, chosen: Sequence[Json], found: Sequence[Json], excerpt: int) -> None:
    """To each near duplicate, the record that is kept in its place."""
    pairs = [(row, about) for row, about in zip(chosen, found, strict=True) if row["reason"] == NEAR and row["of"]]
    rows = {row["id"]: row for row in _decisions_of(corpus, {row["of"] for row, _ in pairs}, "id")}
    for row, about in pairs:
        about["of"] = _place(corpus, rows[row["of"]], excerpt)


def _decisions_of(corpus: CorpusVersion, ids: set[bytes], column: str) -> Iterator[Json]:
    """The decisions whose column (id or of) is one of the ids."""
    wanted = pa.array(sorted(ids), pa.binary())
    for batch in corpus.decision_batches(["id", "of", "shard", "row"]) if ids else ():
        table = pa.Table.from_batches([batch])
        yield from table.filter(pc.is_in(table[column].cast(pa.binary()), wanted)).to_pylist()
