"""The ids of records, computed by whoever asked for them, so that no parser can say which record a text is.

hashlib takes 0.5 µs a record and 1.2 ns a byte. `blake2_lanes` takes a third of that, but loading its compiler takes
0.4 s: it is loaded once a process has spent that long here, so that few records never pay for it.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheaf.formats.charge import Int64
from sheaf.formats.normalise import content_id, content_of
from sheaf.formats.schema import ID_BYTES

_PREFIX = b"text\0"
_LOADING = 4e8  # ns
_LONE = 1 << 12  # bytes of a text, below which it never keeps the others of its column waiting
_spent = 0.0


def record_ids(records: pa.Table) -> pa.ChunkedArray:
    """A column of `normalise.record_id`. records: checked, with kind, text, payload, messages and meta."""
    return pa.chunked_array([_ids(batch) for batch in records.to_batches() if len(batch)], pa.binary(ID_BYTES))


def _ids(batch: pa.RecordBatch) -> pa.FixedSizeBinaryArray:
    text = batch.column("text")
    starts, ends, data = places(text)
    plain = pc.equal(batch.column("kind"), "text").to_numpy(zero_copy_only=False)
    for name in ("payload", "messages"):
        first, last, _ = places(batch.column(name))
        plain &= first == last
    if plain.all():
        return _column(_of_texts(data, starts, ends))
    found = np.empty((len(batch), 2), np.uint64)
    found[plain] = _of_texts(data, starts[plain], ends[plain])
    names = ("text", "kind", "payload", "messages", "meta")
    others = np.flatnonzero(~plain)
    columns = (batch.column(name).take(pa.array(others)).to_pylist() for name in names)
    for row, words, kind, payload, messages, meta in zip(others.tolist(), *columns, strict=True):
        id = content_id(words.encode(), kind, content_of(kind, payload, messages.encode(), meta))
        found[row] = np.frombuffer(id, np.uint64)
    return _column(found)


def _column(digests: NDArray[np.uint64]) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(digests), [None, pa.py_buffer(digests)])


def _of_texts(data: NDArray[np.uint8], starts: Int64, ends: Int64) -> NDArray[np.uint64]:
    """(texts, 2), of records that are nothing but a text."""
    global _spent
    sizes = ends - starts
    alone = (sizes > _LONE) & (sizes * 8 > sizes.sum())  # a lane by itself is slower than hashlib
    _spent += 500 * len(sizes) + 1.2 * float(sizes.sum())
    if _spent < _LOADING and "numba" not in sys.modules:
        alone[:] = True
    found = np.empty((len(sizes), 2), np.uint64)
    if not alone.all():
        from sheaf.formats.blake2_lanes import digests  # here: see above

        if not alone.any():
            return digests(data, starts, ends, _PREFIX)
        found[~alone] = digests(data, starts[~alone], ends[~alone], _PREFIX)
    begun = hashlib.blake2b(_PREFIX, digest_size=ID_BYTES)
    view = data.data
    rows = np.flatnonzero(alone)
    made: list[bytes] = []
    for start, end in zip(starts[rows].tolist(), ends[rows].tolist(), strict=True):
        digest = begun.copy()
        digest.update(view[start:end])
        made.append(digest.digest())
    found[rows] = np.frombuffer(b"".join(made), np.uint64).reshape(-1, 2)
    return found


def places(column: Any) -> tuple[Int64, Int64, NDArray[np.uint8]]:
    """Where each value of a column of strings or binaries, large or not, starts and ends in its bytes, and those."""
    _, offsets, data = column.buffers()
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    kind = np.dtype(np.int64 if large else np.int32)
    found = np.frombuffer(offsets, kind, len(column) + 1, kind.itemsize * column.offset).astype(np.int64, copy=False)
    return found[:-1], found[1:], np.frombuffer(data or b"\0", np.uint8)
