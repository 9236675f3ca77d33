"""The selecting stage: one decision per distinct record, and the account of every item.

It sees ids, scores and origins, never texts. Occurrences are gone through in ranges of ids (`occurrences.py`); the
first by (source in recipe order, path, member, locator) speaks for the record, the others are duplicates (`fold.py`).
Then rules, personal data, evaluation files and what the template refused (`reasons.py`), near duplicates among what is
left (`similar.py`), and what became of every item (`account.py`). The outcome depends on the set of occurrences alone,
not on shards, workers, ranges or order of arrival. Cost: O(n log n); memory for one range and per item; some 150 bytes
an occurrence on disk, until the version is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sheaf.console import Console, Silent
from sheaf.corpus.decided import Decided
from sheaf.corpus.workspace import Workspace
from sheaf.files import disk_errors, temporary_name
from sheaf.prepare import protect
from sheaf.prepare.rendering import Rendering
from sheaf.prepare.select import account
from sheaf.prepare.select.admit import TEMPLATE, Admission, check_admit, idle_rules
from sheaf.prepare.select.fold import Records, fold
from sheaf.prepare.select.items import live_items, quarantined
from sheaf.prepare.select.occurrences import lay_down
from sheaf.prepare.select.reasons import Reasons, reasons_of
from sheaf.prepare.select.similar import drop_similar
from sheaf.prepare.stages import Asked
from sheaf.recipe import Recipe
from sheaf.sources.base import Refusal

__all__ = ["TEMPLATE", "Selection", "check_admit", "idle_rules", "select"]


@dataclass(frozen=True)
class Selection:
    """ledger, quarantine: sorted by (source in recipe order, path). counts: sums for the manifest (account.counts_of).
    content: digest of what was selected and from where. kinds: of records that no rule drops.
    """

    decided: Decided
    ledger: pa.Table
    quarantine: pa.Table
    counts: dict[str, Any]
    content: str
    kinds: frozenset[str]


@contextmanager
def select(
    workspace: Workspace,
    live_shards: Sequence[str],
    live_keys: set[bytes],
    refusals: Sequence[Refusal],
    recipe: Recipe,
    asked: Asked,
    *,
    forgotten: frozenset[bytes] = frozenset(),
    rendering: Rendering | None = None,
    ranges: int | None = None,
    console: Console | None = None,
) -> Generator[Selection]:
    """Decide over all records of the live items. The columns are there until the block ends.

    forgotten: ids of records that are taken out. rendering: what the shards' tokens were made by, if they are there:
    what it refused is dropped, before near duplicates are. ranges: how many ranges of ids, if not as many as memory
    asks for.
    """
    folder = temporary_name(workspace.root / "select")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with disk_errors(folder):
            folder.mkdir()
            yield _select(
                *(workspace, live_shards, live_keys, refusals, recipe, asked),
                *(forgotten, rendering, ranges, folder, console or Silent()),
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _select(
    workspace: Workspace,
    live_shards: Sequence[str],
    live_keys: set[bytes],
    refusals: Sequence[Refusal],
    recipe: Recipe,
    asked: Asked,
    forgotten: frozenset[bytes],
    rendering: Rendering | None,
    ranges: int | None,
    folder: Path,
    console: Console,
) -> Selection:
    names = [s.name for s in recipe.sources]
    items = live_items(workspace, live_shards, live_keys, names)
    records = fold(lay_down(workspace, live_shards, items, folder, console, ranges), items, len(names), folder)
    admission = Admission(recipe.prepare.admit, items, records, folder)
    reasons = reasons_of(workspace, live_shards, records, asked, admission, forgotten, rendering, folder, console)
    of, limited = np.broadcast_to(np.int64(-1), len(records)), 0
    if recipe.prepare.dedup.near is not None:
        near = drop_similar(workspace, live_shards, records, reasons, admission, recipe.prepare.dedup, names, console)
        of, limited = near.of, near.limited
    decided = _decided(records, reasons, of, folder)
    outcomes = account.outcomes(records, decided, items, recipe.prepare.dedup.exact)
    quarantine = quarantined(workspace, live_shards, items, refusals, names)
    ledger = account.ledger_of(items, outcomes, refusals, names)
    counts = account.counts_of(ledger, outcomes, decided, names) | {"near_limited": limited}
    account.check(ledger, counts)
    if asked.private:
        counts["privacy"] = protect.by_source(workspace, live_shards, decided, names)
    content = account.content_digest(names, records.seen, outcomes, quarantine)
    return Selection(decided, ledger, quarantine, counts, content, frozenset(reasons.kinds))


def _decided(records: Records, reasons: Reasons, of: Any, folder: Path) -> Decided:
    return Decided(
        **records.columns,
        text_bytes=reasons.text_bytes,
        reason=reasons.code,
        of=of,
        detail=reasons.detail,
        rank_at=records.rank_at,
        first_row=records.first_row,
        first=records.first,
        folder=folder,
        reasons=reasons.names,
        details=list(reasons.details),
    )
