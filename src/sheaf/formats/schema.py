"""What a sandboxed parser sends back for a batch of items: three tables; `item` is the item's number in the batch.

Bytes always count an item as it lies at its source.
"""

from __future__ import annotations

import pyarrow as pa

KINDS = ("text", "chat", "preference", "image", "audio")  # what a record can be; TEXTUAL ones train language models
TEXTUAL = KINDS[:3]
CHATS = KINDS[1:3]  # conversations: a template writes them out
ID_BYTES = 16  # blake2b-128 of the normalised content: collisions at 10^12 records have probability below 10^-14

PARSED_RECORDS = pa.schema(
    [
        pa.field("item", pa.int32()),
        pa.field("id", pa.binary(ID_BYTES)),
        pa.field("kind", pa.string()),  # one of KINDS
        pa.field("text", pa.large_string()),  # already normalised; "" for kinds without text
        # JSON, for chat and preference; else "". Of a preference, `text` has no word of the rejected answer: what
        # scores or masks texts (languages, personal data) must look in here too.
        pa.field("messages", pa.large_string()),
        pa.field("payload", pa.large_binary()),  # the file's bytes, for image and audio; else b""
        pa.field("meta", pa.string()),
        pa.field("member", pa.string()),
        pa.field("locator", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("media", pa.string()),
        pa.field("encoding", pa.string()),
        pa.field("confidence", pa.float64()),  # in the encoding: 1 if it was said or is proved (`guess`)
        pa.field("repairs", pa.string()),
    ]
)
PARSED_REGIONS = pa.schema(
    [
        pa.field("item", pa.int32()),
        pa.field("member", pa.string()),
        pa.field("locator", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
PARSED_ITEMS = pa.schema(
    [
        pa.field("item", pa.int32()),
        pa.field("digest", pa.string()),
        pa.field("media", pa.string()),
        pa.field("structure_bytes", pa.int64()),
        pa.field("notes", pa.string()),
    ]
)
