"""The ledger, read for people: what became of the items of a corpus version, by source and reason, or one by one."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus.decided import KEPT
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError

Json = dict[str, Any]

SUMS = {
    **{"in": "size", "kept": "kept_bytes", "dropped": "dropped_bytes", "quarantined": "quarantined_bytes"},
    **{"records": "records", "records_kept": "kept", "duplicate": "duplicate", "dropped_records": "dropped"},
    **{"regions": "quarantined"},
}


def summary(corpus: CorpusVersion) -> Json:
    """{"corpus", "bytes": {"in","kept","dropped","quarantined"}, "sources": {NAME: sums}, "reasons": {NAME:
    {"dropped" | "quarantined": {REASON: {"count", "bytes" of quarantined regions}}}}}.
    """
    total = sums(corpus.ledger())
    return {
        "corpus": corpus.digest,
        "bytes": {name: total[name] for name in ("in", "kept", "dropped", "quarantined")},
        "sources": by_source(corpus),
        "reasons": {name: _reasons(corpus, name) for name in corpus.source_names},
    }


def by_source(corpus: CorpusVersion) -> Json:
    """The sums of each source's items, and its tokens."""
    ledger, tokens = corpus.ledger(), corpus.tokens_by_source()
    return {
        name: {**sums(ledger.filter(pc.equal(ledger["source"], name))), "tokens": tokens[name]}
        for name in corpus.source_names
    }


def items_of(corpus: CorpusVersion, pattern: str) -> Json:
    """The ledger lines of the items whose URI or path matches, each with its quarantined regions.

    pattern: any part of the URI, or a regular expression. Raises UsageError if it is none.
    """
    ledger, quarantine = corpus.ledger(), corpus.quarantine()
    items = ledger.filter(matching(ledger, pattern)).to_pylist()
    regions: dict[tuple[str, str], list[Json]] = {}
    for row in quarantine.filter(matching(quarantine, pattern)).to_pylist():
        shown = {k: row[k] for k in ("member", "bytes", "reason", "detail")}
        shown["locator"] = orjson.loads(row["locator"])
        regions.setdefault((row["source"], row["path"]), []).append(shown)
    return {
        "corpus": corpus.digest,
        "items": [{**item, "regions": regions.get((item["source"], item["path"]), [])} for item in items],
    }


def matching(table: pa.Table, pattern: str) -> pa.Array:
    """bool per row: whether its URI contains the pattern or matches it. Raises UsageError if it is no pattern."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise bad_pattern(pattern, error) from error
    return pa.array([pattern in uri or wanted.search(uri) is not None for uri in table["uri"].to_pylist()], pa.bool_())


def bad_pattern(pattern: str, error: re.error) -> UsageError:
    return UsageError(
        "the pattern is no regular expression",
        where=pattern,
        why=str(error),
        fix="give a part of the URI as it is, or write .* where a shell has *",
    )


def sums(ledger: pa.Table) -> Json:
    """Items, bytes and records of some ledger lines, in total."""
    return {"items": len(ledger)} | {k: int(np.sum(ledger[column].to_numpy())) for k, column in SUMS.items()}


def _reasons(corpus: CorpusVersion, name: str) -> Json:
    """Records dropped by a rule (records are counted once, where they belong), and regions quarantined."""
    quarantine = corpus.quarantine()
    regions = quarantine.filter(pc.equal(quarantine["source"], name))
    found = {
        "dropped": {
            reason: {"count": n}
            for reason, n in corpus.manifest["counts"]["sources"][name]["decisions"].items()
            if reason != KEPT
        },
        "quarantined": {
            row["reason"]: {"count": row["reason_count"], "bytes": row["bytes_sum"]}
            for row in regions.group_by("reason").aggregate([("reason", "count"), ("bytes", "sum")]).to_pylist()
        },
    }
    return {what: dict(sorted(by_reason.items())) for what, by_reason in found.items() if by_reason}
