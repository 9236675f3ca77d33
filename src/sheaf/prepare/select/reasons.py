"""Why each record is dropped, but for near duplicates: one pass over the shards' scores.

The order of deciding: forgotten, the rules over scores (length, languages, filters), personal data, evaluation files,
conversations that the template does not take; the first that drops a record names its reason. An exception of
`prepare.admit` undoes its own reason only: what is too short and admitted may still hold a secret. Memory: one shard's
scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.console import Console
from sheaf.corpus.columns import Array, new_array, release
from sheaf.corpus.workspace import Workspace
from sheaf.prepare import decontaminate, encode, protect, score
from sheaf.prepare.rendering import Rendering
from sheaf.prepare.rules import Scored
from sheaf.prepare.select.admit import FORGOTTEN, TEMPLATE, Admission
from sheaf.prepare.select.fold import Records
from sheaf.prepare.stages import Asked


@dataclass
class Reasons:
    """code: uint16 (records,), number in `names`, 0 where nothing drops the record. detail: int32 (records,), number in
    `details`. text_bytes: int64 (records,).
    """

    code: Array
    detail: Array
    text_bytes: Array
    names: list[str]
    details: dict[str, int] = field(default_factory=lambda: {"": 0})
    kinds: set[str] = field(default_factory=set[str])  # of formats.schema.KINDS: of what is not dropped

    def number(self, name: str) -> int:
        """The code of a reason; a new one if it has none yet."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def details_of(self, texts: Sequence[str]) -> Array:
        """Their numbers."""
        return np.array([self.details.setdefault(text, len(self.details)) for text in texts], np.int32)


@dataclass(frozen=True)
class _Rows:
    """Rows of a shard that speak for records, and the ranks of these."""

    shard: str
    row: Array
    rank: Array


def reasons_of(
    workspace: Workspace,
    live_shards: Sequence[str],
    records: Records,
    asked: Asked,
    admission: Admission,
    forgotten: frozenset[bytes],
    rendering: Rendering | None,
    folder: Path,
    console: Console,
) -> Reasons:
    """rendering: what the shards' tokens were made by, if they are there; what it refused is dropped."""
    n = len(records)
    found = Reasons(
        new_array(folder / "reason.npy", "u2", n),
        new_array(folder / "detail.npy", "i4", n),
        new_array(folder / "text-bytes.npy", "i8", n),
        list(asked.rules.reasons),
    )
    with console.stage("select", len(live_shards), "shards") as advance:
        for number, shard in enumerate(live_shards):
            rows = _Rows(shard, *records.rows_of(number))
            if len(rows.row):
                _decide(workspace, rows, records, asked, admission, forgotten, rendering, found)
            advance(1)
    return found


def _decide(
    workspace: Workspace,
    rows: _Rows,
    records: Records,
    asked: Asked,
    admission: Admission,
    forgotten: frozenset[bytes],
    rendering: Rendering | None,
    found: Reasons,
) -> None:
    """One shard's records."""
    found.text_bytes[rows.rank] = score.read(workspace, rows.shard, ["bytes"])["bytes"].to_numpy()[rows.row]
    scores = _taken(asked.rules.read(workspace, rows.shard), rows.row)
    code = np.zeros(len(rows.row), np.uint16)
    if forgotten:
        code[_among(records.columns["id"][rows.rank], forgotten)] = found.number(FORGOTTEN)
    for judged, detail in _judged(workspace, rows, scores, asked, rendering, found, one_by_one=bool(admission)):
        admission.apply(judged, rows.rank, found.names)
        decides = (code == 0) & (judged > 0)
        code[decides] = judged[decides]
        if detail is not None:
            found.detail[rows.rank[decides]] = detail[decides]
    found.code[rows.rank] = code
    found.kinds |= set(pc.unique(scores["kind"].filter(pa.array(code == 0))).to_pylist())
    release(found.code, found.detail, found.text_bytes, records.rank_at, records.columns["id"])


def _judged(
    workspace: Workspace,
    rows: _Rows,
    scores: pa.Table,
    asked: Asked,
    rendering: Rendering | None,
    found: Reasons,
    *,
    one_by_one: bool,
) -> Iterator[tuple[Array, Array | None]]:
    """What each judge says, in their order: uint16 (rows,), codes, and int32 (rows,), details, of those that have any.
    one_by_one: each rule of the scores for itself."""
    if one_by_one:
        scored = Scored(scores)
        for rule in asked.rules.rules:
            yield np.where(rule.drops(scored), found.number(rule.reason), 0).astype(np.uint16), None
    else:
        yield asked.rules.apply(scores), None
    if asked.refused:
        counts = protect.counts(workspace, rows.shard)
        for kind in asked.refused:
            holds = counts[kind].to_numpy()[rows.row] > 0
            yield np.where(holds, found.number(f"privacy:{kind}"), 0).astype(np.uint16), None
    if asked.exams is not None:
        hits = decontaminate.hits(workspace, asked.exams, rows.shard)
        yield _detailed(rows, "evaluation", hits["row"].to_numpy(), hits["detail"].to_pylist(), found)
    if rendering is not None:
        yield _detailed(rows, TEMPLATE, *encode.refused(workspace, rendering, rows.shard), found)


def _detailed(rows: _Rows, reason: str, row: Array, details: Sequence[str], found: Reasons) -> tuple[Array, Array]:
    """Codes and details of a reason that drops these rows of the shard (ascending)."""
    at = np.searchsorted(rows.row, row)
    speaks = (at < len(rows.row)) & (rows.row[np.minimum(at, len(rows.row) - 1)] == row)
    code, detail = np.zeros(len(rows.row), np.uint16), np.zeros(len(rows.row), np.int32)
    code[at[speaks]] = found.number(reason)
    detail[at[speaks]] = found.details_of([text for text, here in zip(details, speaks.tolist(), strict=True) if here])
    return code, detail


def _taken(table: pa.Table, rows: Array) -> pa.Table:
    return table if len(rows) == len(table) else table.take(pa.array(rows))


def _among(ids: Array, wanted: frozenset[bytes]) -> Array:
    return np.isin(ids.view("S16"), np.array(sorted(wanted), "S16"))
