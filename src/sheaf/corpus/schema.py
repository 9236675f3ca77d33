"""The Arrow schemas of the store, and what each column means. Every room that reads or writes records agrees here.

Three tables come out of reading a batch of items (one *shard*, written once, named by its task's digest; an item with
very much text has several of its own, its *parts*):

  records.parquet     one row per distinct record of the shard, sorted by id
  items.parquet       one row per item read, with the item's byte accounts
  quarantine.parquet  one row per region of an item that could not be read

and two describe a *version* of the corpus:

  decisions.parquet   one row per distinct record of the corpus, sorted by (source, id)
  ledger.parquet      one row per live item: bytes in = kept + dropped + quarantined

Bytes always count an item as it lies at its source: a member of an archive is charged the compressed bytes that it
takes, split over its records in integers whose sums are exact (formats/charge.py).
"""

from __future__ import annotations

import pyarrow as pa

from sheaf.corpus import signals
from sheaf.formats.schema import ID_BYTES

# Why a rule of the recipe drops a record, with a sentence for reports and docs. `formats.reasons` has those of bytes.
# A decision's reason is one of these, or one of these and what exactly: "gopher:mean_word_length".
DROPS: dict[str, str] = {
    "c4": "The record fails a rule of C4 (Raffel et al. 2020).",
    "evaluation": "The record holds a part of a file that `prepare.decontaminate` names.",
    "filter": "The record fails an expression of `prepare.filters`.",
    "fineweb": "The record fails a rule of FineWeb (Penedo et al. 2024).",
    "forgotten": "The record was taken out by `sheaf forget`.",
    "gopher": "The record fails a rule of Gopher (Rae et al. 2021).",
    "language": "The record is in none of the languages of `prepare.languages`.",
    "near-duplicate": "The record is similar to one that is kept, at `prepare.dedup.near` or more.",
    "privacy": "The record holds personal data or a secret of a kind that `prepare.privacy` drops.",
    "template": "The chat template does not take the conversation, so it would give no tokens.",
    "too-long": "The record is longer than the recipe's `prepare.length` allows.",
    "too-short": "The record is shorter than the recipe's `prepare.length` asks for.",
}

ORIGIN = pa.struct(
    [
        pa.field("item", pa.int32()),  # row of the shard's items.parquet
        pa.field("source", pa.string()),  # the source's name in the recipe
        pa.field("path", pa.string()),  # the item inside the source
        pa.field("uri", pa.string()),  # where the item lies
        pa.field("version", pa.string()),
        pa.field("member", pa.string()),  # path inside archives, outermost first, joined by "!/"; "" if none
        pa.field("locator", pa.string()),  # JSON: {"bytes":[from,to]} in the expanded member, or {"key":…,"row":n}
        pa.field("bytes", pa.int64()),  # source bytes charged to this occurrence
        pa.field("media", pa.string()),  # detected type, "text/html"
        pa.field("encoding", pa.string()),  # as decoded, "utf-8"
        pa.field("confidence", pa.float64()),  # in the encoding: 1 if it was said or is valid UTF-8, below if guessed
        pa.field("repairs", pa.string()),  # what normalising changed: "nfc,newlines,mojibake,lines"; "" if nothing
    ]
)

RECORDS = pa.schema(
    [
        pa.field("id", pa.binary(ID_BYTES)),
        pa.field("kind", pa.string()),  # of formats.schema.KINDS
        pa.field("text", pa.large_string()),  # of chat: a plain rendering; "" for image and audio
        pa.field("messages", pa.large_string()),  # JSON, for chat and preference: [{"role","content",…}], or
        # {"prompt": […], "chosen": […], "rejected": […]}; else ""
        pa.field("payload", pa.large_binary()),  # the file's bytes, for image and audio; else b""
        pa.field("meta", pa.string()),  # JSON object: title, subject, date, columns that were not text
        pa.field("origins", pa.list_(ORIGIN)),  # every place of this shard where the record was seen
    ]
)

ITEMS = pa.schema(
    [
        pa.field("key", pa.binary(ID_BYTES)),  # what the item was read as: source options, path, version, reader
        pa.field("source", pa.string()),
        pa.field("path", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("version", pa.string()),
        pa.field("size", pa.int64()),  # bytes in
        pa.field("about", pa.string()),  # what the place says of the item, JSON; "" if nothing
        pa.field("digest", pa.string()),  # BLAKE3-128 of the item's bytes, hex; "" if it could not be read whole
        pa.field("claimed", pa.string()),  # the content type that the place claimed
        pa.field("media", pa.string()),
        pa.field("structure_bytes", pa.int64()),  # container structure, headers of tables, blank lines
        pa.field("record_bytes", pa.int64()),  # bytes charged to records
        pa.field("quarantined_bytes", pa.int64()),
        pa.field("records", pa.int64()),  # occurrences, before any deduplication
        pa.field("quarantined", pa.int64()),  # regions
        pa.field("notes", pa.string()),  # e.g. "suffix .txt, content text/html"
        pa.field("part", pa.int32()),  # of a long item: which of its shards this is; bytes and counts are this part's,
        pa.field("last", pa.bool_()),  # structure and regions are in part 0. All other items: part 0, the last
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("path", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("version", pa.string()),
        pa.field("member", pa.string()),
        pa.field("locator", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("reason", pa.string()),  # a code of formats.reasons
        pa.field("detail", pa.string()),
    ]
)

SCORES = pa.schema(  # row-aligned with the shard's records.parquet
    [
        pa.field("id", pa.binary(ID_BYTES)),
        pa.field("kind", pa.string()),
        *signals.fields(),  # what each is: corpus/signals.py
    ]
)

DECISIONS = pa.schema(
    [
        pa.field("id", pa.binary(ID_BYTES)),
        pa.field("source", pa.int32()),  # index into the manifest's sources: the first, in recipe order, that has it
        pa.field("shard", pa.int32()),  # index into the manifest's shards: where the row is that speaks for the record
        pa.field("row", pa.int32()),
        pa.field("kept", pa.bool_()),
        pa.field("reason", pa.string()),  # "" when kept, else why it was dropped: of DROPS, perhaps with ":what"
        pa.field("of", pa.binary(ID_BYTES)),  # of a near duplicate: the record that is kept; else null
        pa.field("detail", pa.string()),  # of "evaluation": the record that was hit; of "template": what it said
        pa.field("occurrences", pa.int32()),  # live places where it was seen; all but one of them are duplicates
    ]
)

LEDGER = pa.schema(
    [
        pa.field("key", pa.binary(ID_BYTES)),  # of ITEMS; null for an item that was not read
        pa.field("source", pa.string()),
        pa.field("path", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("version", pa.string()),
        pa.field("about", pa.string()),
        pa.field("digest", pa.string()),
        pa.field("claimed", pa.string()),
        pa.field("media", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("kept_bytes", pa.int64()),
        pa.field("dropped_bytes", pa.int64()),  # records dropped by a rule, and repeats of a record kept elsewhere
        pa.field("quarantined_bytes", pa.int64()),
        pa.field("records", pa.int64()),
        pa.field("kept", pa.int64()),
        pa.field("duplicate", pa.int64()),
        pa.field("dropped", pa.int64()),
        pa.field("quarantined", pa.int64()),
        pa.field("notes", pa.string()),
    ]
)
