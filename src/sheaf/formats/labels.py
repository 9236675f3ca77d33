"""A folder's file of labels (`metadata.csv`, `.jsonl`, `.parquet`), which was read before the files that it speaks of.

Its rows are in the meta of those files' records, so here it gives no record of its own: all of it is structure. Where
rows and files did not fit together is noted. A place that merely claims this type is not believed.
"""

from __future__ import annotations

from sheaf.formats.piece import Context, Pieces, Refused
from sheaf.formats.stream import Stream

MEDIA = "application/x-sheaf-labels"  # claimed by `prepare.labels`, and by nothing else
NOTES = "labels"  # in the item's `about`: what `prepare.labels` found


def parse(stream: Stream, context: Context) -> Pieces:
    said = context.about.get(NOTES)
    if not isinstance(said, list):
        raise Refused("unsupported", "it claims to hold labels, and the recipe knows of none")
    context.notes.append("; ".join(["labels of the files beside it", *(str(note) for note in said)]))
    stream.drain()
    yield from ()
