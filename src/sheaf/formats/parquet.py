"""Parquet: a record a row, batch by batch, with page checksums verified where a file has them.

What cannot be read costs the rest of its row group, and the next group goes on; the region names the rows. The file's
bytes are shared among row groups by what they hold, and equally among the rows of a group. Memory: a megabyte a column,
a batch of some 16 MB as Arrow, and its rows. No threads, no read-ahead: the sandbox has neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from sheaf.formats.arrow_rows import BATCH_BYTES, BATCH_ROWS, Rows, refusal
from sheaf.formats.charge import split
from sheaf.formats.piece import Context, Pieces, Refused
from sheaf.formats.seekable import seekable
from sheaf.formats.stream import Stream

MAGIC = 4
_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


def parse(stream: Stream, context: Context) -> Pieces:
    file, size = seekable(stream, context)
    try:
        parquet = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
        sizes = _sizes(parquet)
    except MemoryError:
        raise
    except _ERRORS as error:
        raise refusal(error) from None
    if sum(sizes) > max(1 << 20, context.limits.ratio * size):  # before a single page expands
        raise Refused("bomb", f"its columns claim to expand more than {context.limits.ratio:g} times")
    rows, at = Rows(context, size, trusted=True), MAGIC
    for group, part in enumerate(split(size - MAGIC, sizes)):
        yield from _group(parquet, group, rows, at, at + part)
        at += part


def _group(parquet: pq.ParquetFile, group: int, rows: Rows, start: int, end: int) -> Pieces:
    count = max(0, parquet.metadata.row_group(group).num_rows)
    done, at = 0, start
    for batch in _batches(parquet, group, count):
        if isinstance(batch, Exception):
            yield rows.lost(max(0, count - done), at, end, batch, f"row group {group}")
            return
        done += len(batch)
        to = start + (end - start) * min(done, count) // max(count, 1)
        yield from rows.pieces(batch, at, to)
        at = to


def _batches(parquet: pq.ParquetFile, group: int, count: int) -> Iterator[pa.RecordBatch | Exception]:
    """The batches of a row group, and the error that ended them too early."""
    try:
        held = parquet.metadata.row_group(group).total_byte_size
        size = max(1, min(BATCH_ROWS, BATCH_BYTES * count // max(held, 1)))
        done = 0
        for batch in parquet.iter_batches(size, row_groups=[group], use_threads=False):
            batch.validate()  # columns of different lengths
            yield batch
            done += len(batch)
        if done < count:
            yield ValueError(f"it holds {done} rows, not {count}")
    except MemoryError:
        raise
    except _ERRORS as error:
        yield error


def _sizes(parquet: pq.ParquetFile) -> list[int]:
    """The row groups' bytes: the file's, split by what they claim to hold. The columns' own sizes are not asked for:
    for an encrypted column that question ends the process (pyarrow 26)."""
    groups = [parquet.metadata.row_group(n) for n in range(parquet.metadata.num_row_groups)]
    return [max(0, group.total_byte_size) for group in groups]
