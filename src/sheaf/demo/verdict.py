"""The demo's verdict on the ledger, as a table and as an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sheaf.console import Console
from sheaf.corpus.version import CorpusVersion
from sheaf.demo.truth import COUNTS, Truth
from sheaf.errors import SheafError

SHOWN = 10  # mismatches that the error names


class DemoFailed(SheafError):
    """What became of the planted data is not what should have."""

    exit_code = 3


def judge(truth: Truth, corpus: CorpusVersion, mismatches: Sequence[str], console: Console) -> dict[str, Any]:
    """Show planted beside found, by source. Raises DemoFailed if anything differs."""
    found = _found(corpus)
    console.note("\nThe truth that was planted, and what the ledger says:")
    console.note(f"  {'':<10} " + " ".join(f"{name:>15}" for name in ("items", *COUNTS)))
    for source, planted in truth.counts().items():
        cells = [_cell(planted[name], found[source][name]) for name in ("items", *COUNTS)]
        console.note(f"  {source:<10} " + " ".join(f"{cell:>15}" for cell in cells))
    texts = sum(not t.startswith("~") for item in truth.items for t in item.texts)
    if mismatches:
        more = f"\n…and {len(mismatches) - SHOWN} more" if len(mismatches) > SHOWN else ""
        raise DemoFailed(
            f"the ledger differs from the planted truth in {len(mismatches)} places",
            where=str(corpus.root),
            why="\n".join(mismatches[:SHOWN]) + more,
            fix="this is a defect of Sheaf: please report it with the lines above",
        )
    console.note(f"Verdict: all agrees, for {len(truth.items):,} items to the byte and {texts:,} texts to the letter.")
    return {"agrees": True, "items": len(truth.items), "texts": texts, "sources": {k: {**v} for k, v in found.items()}}


def _cell(planted: int, found: int) -> str:
    return f"{found:,}" if planted == found else f"{found:,} not {planted:,}"


def _found(corpus: CorpusVersion) -> dict[str, dict[str, int]]:
    ledger = corpus.ledger()
    result: dict[str, dict[str, int]] = {}
    for source in corpus.source_names:
        rows = ledger.filter(pc.equal(ledger["source"], source))
        result[source] = {"items": len(rows), **{name: int(np.sum(rows[name].to_numpy())) for name in COUNTS}}
    return result
