"""A folder's file of labels (`metadata.csv`, `.jsonl`, `.parquet`), which was read before the files that it speaks of.

Its rows are in the meta of those files' records, so here it gives no record of its own: all of it is structure.
"""

from __future__ import annotations

from sheaf.formats.piece import Context, Pieces
from sheaf.formats.stream import Stream

MEDIA = "application/x-sheaf-labels"  # claimed by `prepare.labels`, and by nothing else


def parse(stream: Stream, context: Context) -> Pieces:
    context.notes.append("labels of the files beside it")
    stream.drain()
    yield from ()
