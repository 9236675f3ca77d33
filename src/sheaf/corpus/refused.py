"""What did not become training data, one by one: quarantined regions and dropped records, and what is in them.

A dropped record's text is in its shard. A quarantined region's bytes are where they always were: its item is opened
again at its source, and the sandbox gives the beginning of the region, also of a member inside archives; nothing of it
is decoded or believed. What is personal or secret in what is shown is masked. Cost: for each region shown, its item is
expanded as far as the region.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus.ledger import matching
from sheaf.corpus.lineage import Rereader, SourceChanged, ids_of
from sheaf.corpus.schema import DROPS
from sheaf.corpus.version import CorpusVersion, read_rows
from sheaf.errors import UsageError
from sheaf.formats.reasons import REASONS, explain
from sheaf.privacy import LONGEST, excerpt, hidden
from sheaf.sources.reasons import REFUSALS

Json = dict[str, Any]
EXCERPT_BYTES = 2048
EVALUATION = "evaluation"


def refused(
    corpus: CorpusVersion,
    *,
    item: str | None = None,
    reason: str | None = None,
    source: str | None = None,
    show: bool = False,
    most: int | None = None,
) -> Json:
    """{"corpus", "meaning", "count", "regions": [{source, uri, path, member, locator, bytes, reason, detail}],
    "dropped": [{record, source, uri, path, member, locator, reason, detail}]}.

    Of one item, reason or source, if given, and at most `most` of each. show: with "excerpt", the first 2 kB, as text
    in which bytes that are no UTF-8 are \\xNN, and "why" where there is none. count: how many there are of each.
    meaning: of the reason asked for, in a sentence. Raises UsageError for a source, a reason or a pattern that cannot
    be.
    """
    if source is not None and source not in corpus.source_names:
        raise UsageError(f"no source is called '{source}'", fix=f"the sources are {', '.join(corpus.source_names)}")
    _check_reason(corpus, reason)
    regions = _regions(corpus, item, reason, source)
    dropped = _dropped(corpus, item, reason, source)
    found: Json = {
        "corpus": corpus.digest,
        "meaning": _meaning(reason or ""),
        "count": {"regions": len(regions), "dropped": len(dropped)},
        "regions": [_region(row) for row in regions.slice(0, most).to_pylist()],
        "dropped": _records(corpus, dropped.slice(0, most), show),
    }
    if show and found["regions"]:
        with Rereader(corpus) as again:
            for region in found["regions"]:
                region |= _excerpt(again, region)
    return found


def _check_reason(corpus: CorpusVersion, reason: str | None) -> None:
    """Nothing found must mean that nothing was lost so, never that a word was misspelt."""
    if reason is None or _meaning(reason):
        return
    found = {r for table in (corpus.quarantine(), corpus.dropped()) for r in pc.unique(table["reason"]).to_pylist()}
    near = get_close_matches(reason, [*REASONS, *REFUSALS, *DROPS], 1)
    raise UsageError(
        f"nothing is ever lost for a reason '{reason}'",
        why=f"here there are: {', '.join(sorted(found - {''})) or 'none; nothing was lost'}",
        fix=f"did you mean '{near[0]}'?" if near else "`sheaf ledger` shows the reasons",
    )


def _meaning(reason: str) -> str:
    return explain(reason) or DROPS.get(reason.partition(":")[0], "")


def _regions(corpus: CorpusVersion, item: str | None, reason: str | None, source: str | None) -> pa.Table:
    table = corpus.quarantine()
    if item is not None:
        table = table.filter(matching(table, item))
    for column, value in (("reason", reason), ("source", source)):
        table = table if value is None else table.filter(pc.equal(table[column], value))
    return table


def _dropped(corpus: CorpusVersion, item: str | None, reason: str | None, source: str | None) -> pa.Table:
    table = corpus.dropped()
    if reason is not None:
        whole, kinds_of_it = pc.equal(table["reason"], reason), pc.starts_with(table["reason"], f"{reason}:")
        table = table.filter(pc.or_(whole, kinds_of_it))
    if source is not None:
        table = table.filter(pc.equal(table["source"], corpus.source_names.index(source)))
    if item is None:
        return table
    ids = ids_of(corpus, item)
    return table.filter(pa.array([i in ids for i in table["id"].to_pylist()], pa.bool_()))


def _records(corpus: CorpusVersion, table: pa.Table, show: bool) -> list[Json]:
    rows = _rows(corpus, table, ["id", "origins", *(["text"] if show else [])])
    found: list[Json] = []
    for row, reason, detail in zip(rows, *(table[c].to_pylist() for c in ("reason", "detail")), strict=True):
        origin = row["origins"][0]
        place = {name: origin[name] for name in ("source", "uri", "path", "member")}
        about = {"record": row["id"].hex(), **place, "locator": orjson.loads(origin["locator"]), "reason": reason}
        about["detail"] = detail if reason == EVALUATION else ""  # it outlives an earlier reason
        found.append(about | ({"excerpt": excerpt(row["text"], EXCERPT_BYTES)} if show else {}))
    return found


def _rows(corpus: CorpusVersion, decisions: pa.Table, columns: list[str]) -> list[Json]:
    """The records of these decisions, in their order."""
    shard, row = decisions["shard"].to_numpy(), decisions["row"].to_numpy()
    found: list[Json] = [{}] * len(shard)
    for number in np.unique(shard):
        here = np.flatnonzero(shard == number)
        for at, record in zip(here, read_rows(corpus.shard_path(int(number)), row[here], columns), strict=True):
            found[at] = record
    return found


def _region(row: Json) -> Json:
    names = ("source", "uri", "path", "version", "member", "bytes", "reason", "detail")
    return {**{name: row[name] for name in names}, "locator": orjson.loads(row["locator"])}


def _excerpt(again: Rereader, region: Json) -> Json:
    start, end = region["locator"].get("bytes", (0, -1))
    if not region["version"]:
        return {"why": "it was never opened"}
    if end < start:
        return {"why": "its bytes cannot be told apart from its neighbours'"}
    try:
        data = again.bytes_of(region, start, min(end - start, EXCERPT_BYTES + LONGEST))
    except SourceChanged as error:
        return {"why": f"{error.what}: {error.why}"}
    inside = hidden(data.decode("utf-8", "backslashreplace"))
    return {"excerpt": inside if len(data) <= EXCERPT_BYTES else inside[:EXCERPT_BYTES]}
