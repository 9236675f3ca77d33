"""Near duplicates among what no other rule drops, and the brake: a source that would lose too much stops everything.

A recipe that eats a source is nearly always a mistake (a template around every record, a source listed twice), and the
loss would be found weeks later, if ever. So the clusters are shown instead, and nothing is committed. A loss of fewer
than FEW records stops nothing: in a small source one form letter is a large share, `sheaf show` prints all that went on
a few screens, and no corpus is spoilt by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sheaf.console import Console
from sheaf.corpus.columns import Array, chunks, release
from sheaf.corpus.decided import NEAR
from sheaf.corpus.version import read_rows
from sheaf.corpus.workspace import Workspace
from sheaf.errors import DataRefused
from sheaf.prepare import near
from sheaf.prepare.select.admit import Admission
from sheaf.prepare.select.fold import Records
from sheaf.prepare.select.reasons import Reasons
from sheaf.privacy import hidden
from sheaf.recipe import Dedup

FEW = 100  # near duplicates of a source that never stop a run, whatever share they are
CLUSTERS, READ, EXCERPT = 3, 2000, 120  # clusters shown; characters of a text that are masked, and shown of that


def drop_similar(
    workspace: Workspace,
    live_shards: Sequence[str],
    records: Records,
    reasons: Reasons,
    admission: Admission,
    dedup: Dedup,
    names: Sequence[str],
    console: Console,
) -> near.Near:
    """Give near duplicates their reason; what is kept instead of each is in the result. Raises DataRefused."""
    if dedup.near is None:
        raise ValueError("the recipe asks for no near duplicates")
    eligible = (reasons.code == 0) & (reasons.text_bytes > 0)
    shard, row = (records.columns[name] for name in ("shard", "row"))
    found = near.decide(workspace, live_shards, shard, row, eligible, dedup.near, console)
    code = reasons.number(NEAR)
    for start, stop in chunks(len(records)):
        here = slice(start, stop)
        dropped = np.where(found.of[here] >= 0, code, 0).astype(np.uint16)
        admission.apply(dropped, here, reasons.names)
        found.of[here][dropped == 0] = -1
        reasons.code[here] |= dropped  # only what had no reason
        likeness = np.round(found.similarity[here][dropped > 0], 2)
        reasons.detail[start + np.flatnonzero(dropped)] = reasons.details_of([f"{x:.2f}" for x in likeness.tolist()])
        release(reasons.code, reasons.detail)
    _brake(workspace, live_shards, records, found.of, eligible, dedup, names)
    return found


def _brake(
    workspace: Workspace,
    live_shards: Sequence[str],
    records: Records,
    of: Array,
    eligible: Array,
    dedup: Dedup,
    names: Sequence[str],
) -> None:
    for source, name in enumerate(names):
        here = slice(*records.first[source : source + 2].tolist())
        had, lost = int(eligible[here].sum()), int((of[here] >= 0).sum())
        if lost >= FEW and lost > dedup.max_loss * had:
            raise DataRefused(
                f"near duplicates would take {lost:,} of the {had:,} records that the source '{name}' has left",
                where=f"prepare.dedup: {{near: {dedup.near}, max_loss: {dedup.max_loss}}}",
                why=f"that is {lost / had:.0%}, more than max_loss allows. The largest clusters:\n"
                + "\n".join(_clusters(workspace, live_shards, records, of, here, names)),
                fix="raise prepare.dedup.max_loss if these may go, raise or remove prepare.dedup.near if not, "
                "or put this source before the others: what stands first in the recipe stays",
            )


def _clusters(
    workspace: Workspace, live_shards: Sequence[str], records: Records, of: Array, here: slice, names: Sequence[str]
) -> list[str]:
    """The largest clusters of a source: what stays, and one of those that would go."""
    inside = of[here]
    lines: list[str] = []
    for kept, size in zip(*(x.tolist() for x in near.clusters.largest(inside, CLUSTERS)), strict=True):
        gone = here.start + int(near.clusters.members(inside, kept)[0])
        texts = [_excerpt(workspace, live_shards, records, rank) for rank in (kept, gone)]
        owner = names[int(records.columns["source"][kept])]
        lines.append(f"    {size - 1:,} are like this one of '{owner}': {texts[0]}")
        lines.append(f"        such as: {texts[1]}")
    return lines


def _excerpt(workspace: Workspace, live_shards: Sequence[str], records: Records, rank: int) -> str:
    shard, row = (int(records.columns[name][rank]) for name in ("shard", "row"))
    text = read_rows(workspace.shard(live_shards[shard]), [row], ["text"])[0]["text"]
    shown = " ".join(hidden(text[:READ]).split())
    return f"“{shown[:EXCERPT]}{'…' if len(shown) > EXCERPT else ''}”"
