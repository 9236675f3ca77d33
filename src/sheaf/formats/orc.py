"""ORC: a record a row, a stripe at a time (writers cut them at 64 MB or so); a stripe that cannot be read is a region.

How many rows such a stripe had is known if one of its columns can be read, or if it is the last; else those after it
count on without it. The library looks up even UTC in a time zone database, and the sandbox reaches no system folder:
the package tzdata brings one.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import os

import pyarrow as pa
from pyarrow import orc

from sheaf.formats.arrow_rows import Rows, refusal
from sheaf.formats.piece import Context, Pieces
from sheaf.formats.seekable import seekable
from sheaf.formats.stream import Stream

MAGIC = 3
COLUMNS_TRIED = 20
_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


def parse(stream: Stream, context: Context) -> Pieces:
    os.environ["TZDIR"] = str(importlib.resources.files("tzdata") / "zoneinfo")  # read by the C++ library
    file, size = seekable(stream, context)
    try:
        reader = orc.ORCFile(pa.PythonFile(file, "r"))
        count, total = reader.nstripes, reader.nrows
    except MemoryError:
        raise
    except _ERRORS as error:
        raise refusal(error) from None
    rows = Rows(context, size, trusted=False)
    for n in range(count):
        start, end = MAGIC + (size - MAGIC) * n // count, MAGIC + (size - MAGIC) * (n + 1) // count
        try:
            batch = reader.read_stripe(n)
        except MemoryError:
            raise
        except _ERRORS as error:
            left = max(0, total - rows.number) if n == count - 1 else _count(reader, n)
            yield rows.lost(left, start, end, error, f"stripe {n}")
            continue
        yield from rows.portions(batch, start, end)


def _count(reader: orc.ORCFile, stripe: int) -> int:
    """The rows of a stripe, by the first of its columns that can be read; 0 if none can."""
    for name in reader.schema.names[:COLUMNS_TRIED]:
        with contextlib.suppress(*_ERRORS):
            return len(reader.read_stripe(stripe, columns=[name]))
    return 0
