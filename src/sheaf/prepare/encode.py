"""The encoding stage: a shard's records become one flat token file with row offsets.

Every row of a shard is encoded, also those not kept now: decisions change in seconds, encoding is the dear part. A
document's last token is the end-of-text token. tokens.bin: uint16 or uint32, little-endian. offsets.npy: int64,
(rows + 1,). bytes.npy: int64, (rows,), UTF-8 bytes of what is predicted. Where a shard has conversations also loss.bin:
uint8, one a token, 1 where the token is to be predicted. refused.json: [row, reason] of the conversations that the
template does not take; they have no tokens. tokens.bin.blocks, loss.bin.blocks: digests of their blocks.

Texts go to the encoder a batch at a time, without a Python object each; conversations one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheaf.corpus.blocks import table_path, write_table
from sheaf.corpus.columns import save_array
from sheaf.corpus.decided import Decided
from sheaf.corpus.token_files import TOKENS
from sheaf.corpus.tokens import DAMAGED
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import checked, digest_file, present, read_done, remove_folder, task_folder
from sheaf.formats.schema import CHATS
from sheaf.prepare import protect
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.limits import limited
from sheaf.prepare.rendering import Chats, Rendering, messages_of, tools_of
from sheaf.prepare.template import Refused
from sheaf.privacy import hidden

VERSION = 2
ROWS = 1024
_NONE = np.zeros(0, np.int64)


def task(workspace: Workspace, rendering: Rendering, shard: str) -> Task:
    arguments = {"workspace": workspace.where, "rendering": rendering.to_json(), "shard": shard}
    return Task("sheaf.prepare.encode:encode_shard", arguments, label=f"encode {shard[:8]}")


def encode_shard(workspace: str, rendering: Mapping[str, Any], shard: str) -> Json:
    store, how = Workspace.at(workspace), Rendering.from_json(rendering)
    encoder = _encoder(checked(store.tokenizer(how.tokenizer) / "tokenizer.json"))
    records = pq.ParquetFile(checked(store.shard(shard) / "records.parquet"))
    kinds = records.read(columns=["kind"])["kind"]
    has_chats = bool(pc.any(pc.is_in(kinds, pa.array(CHATS))).as_py()) and how.template != ""
    chats = Chats(how, encoder) if has_chats else None
    found = protect.findings(store, shard) if how.masked else None
    unwritten: list[tuple[int, str]] = []
    lengths, sizes, row = [_NONE], [_NONE], 0
    with (
        task_folder(store.tokens(how.digest, shard), stage="encode", dtype=encoder.dtype.__name__) as out,
        ExitStack() as stack,
    ):
        tokens = stack.enter_context((out / "tokens.bin").open("wb"))
        loss = stack.enter_context((out / "loss.bin").open("wb")) if chats else None
        for batch in records.iter_batches(ROWS, columns=["text", "kind", "messages", "meta"] if chats else ["text"]):
            part = _texts(encoder, _as_trained(batch, found, row, how, without_chats=chats is not None))
            if chats is not None:
                part = _with_chats(part, chats, batch, how, unwritten, row)
            tokens.write(part.ids.astype(encoder.dtype).tobytes())
            if loss is not None:
                loss.write(np.concatenate(part.loss).tobytes())
            lengths.append(np.diff(part.bounds))
            sizes.append(part.sizes)
            row += len(batch)
        offsets = np.append(0, np.cumsum(np.concatenate(lengths)))
        save_array(out / "offsets.npy", offsets)
        save_array(out / "bytes.npy", np.concatenate(sizes))
        (out / "refused.json").write_bytes(orjson.dumps(unwritten))
        for file in (tokens, loss):
            if file is not None:
                file.close()
                write_table(Path(file.name))
    return {"tokens": int(offsets[-1]), "refused": len(unwritten)}


def sound(folder: Path) -> bool:
    """Whether a shard's tokens are there, with digests of their blocks, and whole where somebody found them damaged.

    What is not is removed, to be made again: the encoder gives the same tokens.
    """
    done = read_done(folder)
    if done is None:
        return False
    files = done["files"]
    whole = table_path(folder / TOKENS).name in files
    if whole and (folder / DAMAGED).exists():
        whole = all(digest_file(present(folder / name)) == digest for name, digest in files.items())
        if whole:  # it was a passing fault, or has been mended
            (folder / DAMAGED).unlink()
    if not whole:
        remove_folder(folder)
    return whole


def refused(workspace: Workspace, rendering: Rendering, shard: str) -> tuple[NDArray[np.int64], list[str]]:
    """The rows of a shard, ascending, that the template does not take, and what it said of each."""
    if not rendering.template:
        return _NONE, []
    told = orjson.loads(checked(workspace.tokens(rendering.digest, shard) / "refused.json").read_bytes())
    return np.array([row for row, _ in told], np.int64), [reason for _, reason in told]


def keeps_refused(workspace: Workspace, rendering: Rendering, live_shards: Sequence[str], decided: Decided) -> bool:
    """Whether a record is kept that the template does not take."""
    for number, shard in enumerate(live_shards):
        rows, ranks = decided.rows_of(number)
        here = np.isin(rows, refused(workspace, rendering, shard)[0])
        if bool((decided.reason[ranks[here]] == 0).any()):
            return True
    return False


def settle(workspace: Workspace, rendering: Rendering, live_shards: Sequence[str], decided: Decided) -> None:
    """Set the sizes of the texts to those of what is trained."""
    for number, shard in enumerate(live_shards):
        folder = workspace.tokens(rendering.digest, shard)
        rows, ranks = decided.rows_of(number)
        decided.text_bytes[ranks] = np.load(checked(folder / "bytes.npy"), allow_pickle=False)[rows]


@dataclass(frozen=True)
class _Part:
    """Some rows: ids; loss, what of them is predicted, row by row (only where there are conversations); bounds, int64
    (rows + 1,); sizes, int64 (rows,), UTF-8 bytes of what is predicted."""

    ids: NDArray[np.uint32]
    loss: list[NDArray[np.uint8]]
    bounds: NDArray[np.int64]
    sizes: NDArray[np.int64]


def _as_trained(
    batch: pa.RecordBatch, found: pa.Table | None, first: int, how: Rendering, *, without_chats: bool
) -> pa.LargeStringArray:
    """The texts, masked; empty for conversations, which are written out from their messages."""
    texts = batch["text"]
    if found is not None:
        row = found["row"].to_numpy()
        here = found.slice(*_range(row, first, first + len(batch)))
        moved = here.set_column(0, "row", pa.array(here["row"].to_numpy() - first, here["row"].type))
        texts = protect.masked(texts, moved, how.masked)
    if without_chats:
        texts = pc.if_else(pc.is_in(batch["kind"], pa.array(CHATS)), pa.scalar("", pa.large_string()), texts)
    return texts


def _range(row: NDArray[np.integer], start: int, stop: int) -> tuple[int, int]:
    """Offset and number of the sorted rows in [start, stop)."""
    a, b = np.searchsorted(row, [start, stop]).tolist()
    return a, b - a


def _texts(encoder: Encoder, texts: pa.LargeStringArray) -> _Part:
    ids, bounds = encoder.encode_many(texts)
    return _Part(ids, [], bounds, pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))


def _with_chats(
    part: _Part, chats: Chats, batch: pa.RecordBatch, how: Rendering, unwritten: list[tuple[int, str]], first: int
) -> _Part:
    """The same rows, with what the template makes of the conversations."""
    ids = [part.ids[a:b] for a, b in zip(part.bounds[:-1], part.bounds[1:], strict=True)]
    loss = [np.ones(len(x), np.uint8) for x in ids]
    sizes = part.sizes.copy()
    stored = protect.masked_messages(batch["messages"], how.masked) if how.masked else batch["messages"]
    with limited() as wind_up:
        for i in np.flatnonzero(pc.is_in(batch["kind"], pa.array(CHATS)).to_numpy(zero_copy_only=False)).tolist():
            wind_up()
            said = stored[i].as_py()
            if not said:  # it was forgotten
                ids[i], loss[i], sizes[i] = ids[i][:0], loss[i][:0], 0
                continue
            try:
                messages = messages_of(batch["kind"][i].as_py(), said)
                tools = protect.masked_tools(tools_of(batch["meta"][i].as_py()), how.masked)
                encoded = chats.encode(messages, tools)
                ids[i], loss[i], sizes[i] = encoded.ids, encoded.loss, encoded.spoken_bytes
            except Refused as error:
                unwritten.append((first + i, hidden(str(error))))
                ids[i], loss[i], sizes[i] = ids[i][:0], loss[i][:0], 0
    return _Part(np.concatenate(ids), loss, np.cumsum([0, *(len(x) for x in ids)]), sizes)


@lru_cache(maxsize=1)
def _encoder(path: Path) -> Encoder:
    """Building the fast path takes a moment; a worker encodes many shards with the same tokenizer."""
    return Encoder(path)
