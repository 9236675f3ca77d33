"""Why each record is dropped, but for near duplicates: one pass over the shards' scores.

The order of deciding: forgotten, the rules over scores (length, languages, filters), personal data, evaluation files;
the first that drops a record names its reason. An exception of `prepare.admit` undoes its own reason only. Memory: one
shard's scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.corpus.columns import Array, new_array
from sheaf.corpus.workspace import Workspace
from sheaf.prepare import score
from sheaf.prepare.rules import Rules
from sheaf.prepare.select.admit import FORGOTTEN, Admission
from sheaf.prepare.select.fold import Records


@dataclass
class Reasons:
    """code: uint16 (records,), number in `names`, 0 where nothing drops the record. detail: int32 (records,), number in
    `details`. text_bytes: int64 (records,).
    """

    code: Array
    detail: Array
    text_bytes: Array
    names: list[str]
    details: list[str] = field(default_factory=lambda: [""])
    kinds: set[str] = field(default_factory=set[str])  # of formats.schema.KINDS: of what is not dropped

    def number(self, name: str) -> int:
        """The code of a reason; a new one if it has none yet."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


def reasons_of(
    workspace: Workspace,
    live_shards: Sequence[str],
    records: Records,
    rules: Rules,
    admission: Admission,
    forgotten: frozenset[bytes],
    folder: Path,
) -> Reasons:
    n = len(records)
    found = Reasons(
        new_array(folder / "reason.npy", "u2", n),
        new_array(folder / "detail.npy", "i4", n),
        new_array(folder / "text-bytes.npy", "i8", n),
        list(rules.reasons),
    )
    gone = found.number(FORGOTTEN)
    for number, shard in enumerate(live_shards):
        rows, ranks = records.rows_of(number)
        if not len(rows):
            continue
        found.text_bytes[ranks] = score.read(workspace, shard, ["bytes"])["bytes"].to_numpy()[rows]
        scores = _rows(rules.read(workspace, shard), rows)
        code = rules.apply(scores)
        admission.apply(code, ranks, found.names)
        code[_among(records.columns["id"][ranks], forgotten)] = gone
        found.code[ranks] = code
        found.kinds |= set(pc.unique(scores["kind"].filter(pa.array(code == 0))).to_pylist())
    return found


def _rows(table: pa.Table, rows: Array) -> pa.Table:
    return table if len(rows) == len(table) else table.take(pa.array(rows))


def _among(ids: Array, wanted: frozenset[bytes]) -> Array:
    if not wanted:
        return np.zeros(len(ids), bool)
    return np.isin(ids.view("S16"), np.array(sorted(wanted), "S16"))
