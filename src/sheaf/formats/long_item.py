"""An item whose records are too much to hold: they wait on disk until its end, when their bytes are known.

The file has no name, so nothing is left of it whatever happens; it holds what the child sent, checked, as Arrow. Cost:
writing and reading the text once more, at memory's speed while the system's cache holds it (LZ4 halves the file, and
took five times as long); in memory one frame at a time, and a few numbers for each stream (member) of the item.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheaf.formats.charge import Int64, RecordCharges
from sheaf.formats.schema import PARSED_RECORDS
from sheaf.formats.wire import RECORDS

ROW_BYTES = 256  # what a record takes beside its texts, in Python, Arrow and the origins of a shard
_VARIABLE = ("text", "messages", "payload", "meta", "member", "locator")
WITH_IDS = RECORDS.append(PARSED_RECORDS.field("id"))
_OPTIONS = pa.ipc.IpcWriteOptions(use_threads=False)


def row_bytes(records: pa.Table) -> Int64:
    """About what each record takes in memory; depends on the record alone."""
    total = np.full(len(records), ROW_BYTES, np.int64)
    for name in _VARIABLE:
        total += pc.cast(pc.binary_length(records.column(name)), pa.int64()).to_numpy()
    return total


class Spool:
    """Takes an item's records, of the schema WITH_IDS, and gives them back once with their bytes."""

    def __init__(self, folder: Path | None) -> None:
        self._file = _scratch(folder)
        self._writer = pa.ipc.new_stream(self._file, WITH_IDS, options=_OPTIONS)
        self._weights = np.zeros(1, np.int64)  # by stream
        self.rows = 0

    def add(self, records: pa.Table) -> None:
        """stream and weight must not be negative."""
        stream, weight = numbers(records, "stream"), numbers(records, "weight")
        if len(stream):
            missing = int(stream.max()) + 1 - len(self._weights)
            if missing > 0:
                self._weights = np.append(self._weights, np.zeros(max(missing, len(self._weights)), np.int64))
            np.add.at(self._weights, stream, weight)
        self.rows += len(records)
        self._writer.write_table(records)

    def charged(self, cost: Int64, whole: Int64) -> int:
        """The sum of the records' bytes. cost, whole: by stream."""
        if self._weights[len(cost) :].any():
            raise IndexError("a stream that is not there")
        triples = zip(self._weights.tolist(), cost.tolist(), whole.tolist(), strict=False)
        return sum(c * weight // w for weight, c, w in triples if weight)

    def records(self, cost: Int64, whole: Int64) -> Iterator[pa.Table]:
        """Tables of PARSED_RECORDS, in order, a few megabytes each."""
        self._writer.close()
        self._file.seek(0)
        charges = RecordCharges(cost, whole)
        with pa.ipc.open_stream(self._file) as reader:
            for batch in reader:
                yield with_bytes(pa.Table.from_batches([batch]), charges)

    def close(self) -> None:
        self._file.close()


def _scratch(folder: Path | None) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


@dataclass(frozen=True)
class LongItem:
    """One item of a request. rows: how many records. cost, whole: of its streams, as in `charge.Charges`."""

    item: int
    rows: int
    spool: Spool
    cost: Int64
    whole: Int64

    def records(self) -> Iterator[pa.Table]:
        """Once: tables of PARSED_RECORDS, in order, a few megabytes each."""
        try:
            yield from self.spool.records(self.cost, self.whole)
        finally:
            self.spool.close()


def with_bytes(records: pa.Table, charges: RecordCharges) -> pa.Table:
    """From WITH_IDS to PARSED_RECORDS."""
    sizes = charges.of(numbers(records, "stream"), numbers(records, "weight"))
    columns = [
        pa.chunked_array([pa.array(sizes, pa.int64())]) if field.name == "bytes" else records.column(field.name)
        for field in PARSED_RECORDS
    ]
    return pa.Table.from_arrays(columns, schema=PARSED_RECORDS)


def numbers(table: pa.Table, column: str) -> Int64:
    return pc.cast(table.column(column), pa.int64()).to_numpy()
