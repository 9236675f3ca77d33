"""What selecting decided over every distinct record, before it is a version: columns on disk, in *rank* order.

A record's rank is its place by (source, id): by source in the recipe's order, inside it by id. Ranks are what the other
columns, the near duplicates and the documents count in. Memory: none of its own; some 50 bytes a record on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sheaf.corpus.columns import Array, chunks, release
from sheaf.corpus.schema import DECISIONS
from sheaf.formats.schema import ID_BYTES

NEAR = "near-duplicate"
KEPT = "kept"  # how the counts of a manifest call the decision for a record


@dataclass(frozen=True)
class Decided:
    """Columns (records,) in rank order, and two by place.

    id: V16. source: int32, index of the source that speaks for the record. shard, row: int32, where its row lies.
    occurrences: int32, live places where it was seen. text_bytes: int64, UTF-8 bytes of its text. reason: uint16,
    number in `reasons`, 0 where it is kept. of: int64, rank of the kept record that it is like, or -1. detail: int32,
    number in `details`. rank_at: int64 (rows of all shards), the rank of the record that a shard's row speaks for, or
    -1. first_row: int64 (shards + 1), where each shard's rows begin in rank_at. first: int64 (sources + 1), where each
    source's records begin.
    """

    id: Array
    source: Array
    shard: Array
    row: Array
    occurrences: Array
    text_bytes: Array
    reason: Array
    of: Array
    detail: Array
    rank_at: Array
    first_row: Array
    first: Array
    folder: Path  # where they lie, and more may: it goes when the version is made
    reasons: list[str]  # reasons[0] == ""
    details: list[str]  # details[0] == ""

    def __len__(self) -> int:
        return len(self.id)

    def rows_of(self, shard: int) -> tuple[Array, Array]:
        """(rows, ranks) of the records for which this shard speaks, rows ascending."""
        return rows_of(self.rank_at, self.first_row, shard)

    def kept(self, start: int, stop: int) -> Array:
        return self.reason[start:stop] == 0

    def tables(self) -> Iterator[pa.Table]:
        """The decisions as they are stored, piece by piece."""
        for start, stop in chunks(len(self)):
            here = slice(start, stop)
            of = self.of[here]
            of_ids = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(ID_BYTES), len(of), [None, pa.py_buffer(self.id[np.maximum(of, 0)].tobytes())]
            )
            columns = {
                "id": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(ID_BYTES), stop - start, [None, pa.py_buffer(self.id[here].tobytes())]
                ),
                **{n: pa.array(getattr(self, n)[here]) for n in ("source", "shard", "row")},
                "kept": pa.array(self.kept(start, stop)),
                "reason": pa.array(self.reasons, pa.string()).take(pa.array(self.reason[here])),
                "of": of_ids.take(pa.array(np.where(of >= 0, np.arange(len(of)), 0), mask=of < 0)),
                "detail": pa.array(self.details, pa.string()).take(pa.array(self.detail[here])),
                "occurrences": pa.array(self.occurrences[here]),
            }
            yield pa.table(columns).cast(DECISIONS)
            release(self.id, self.source, self.shard, self.row, self.reason, self.detail, self.occurrences)


def rows_of(rank_at: Array, first_row: Array, shard: int) -> tuple[Array, Array]:
    """As Decided.rows_of, of its two columns."""
    ranks = rank_at[first_row[shard] : first_row[shard + 1]]
    rows = np.flatnonzero(ranks >= 0)
    return rows, np.array(ranks[rows])
