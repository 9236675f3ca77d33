"""The encoding stage: a shard's texts become one flat token file with row offsets.

Every row of a shard is encoded, also those not kept now: decisions change in seconds, encoding is the dear part. A
document's last token is the end-of-text token. tokens.bin: uint16 or uint32, little-endian. offsets.npy: int64,
(rows + 1,).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sheaf.corpus.documents import save_array
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import checked, task_folder
from sheaf.prepare.encoder import Encoder

ROWS = 1024


def task(workspace: Workspace, tokenizer: str, shard: str) -> Task:
    arguments = {"workspace": str(workspace.root), "tokenizer": tokenizer, "shard": shard}
    return Task("sheaf.prepare.encode:encode_shard", arguments, label=f"encode {shard[:8]}")


def encode_shard(workspace: str, tokenizer: str, shard: str) -> Json:
    store = Workspace(Path(workspace))
    encoder = _encoder(checked(store.tokenizer(tokenizer) / "tokenizer.json"))
    records = pq.ParquetFile(checked(store.shard(shard) / "records.parquet"))
    offsets = np.zeros(records.metadata.num_rows + 1, np.int64)
    end = np.array([encoder.end_of_text], encoder.dtype)
    row = 0
    with task_folder(store.tokens(tokenizer, shard), stage="encode", dtype=encoder.dtype.__name__) as out:
        with (out / "tokens.bin").open("wb") as f:
            for batch in records.iter_batches(ROWS, columns=["text"]):
                ids = [encoder.encode(text.as_py()) for text in batch["text"]]
                lengths = [len(i) + 1 for i in ids]
                offsets[row + 1 : row + 1 + len(ids)] = lengths
                row += len(ids)
                f.write(np.concatenate([part.astype(encoder.dtype) for i in ids for part in (i, end)]).tobytes())
        np.cumsum(offsets, out=offsets)
        save_array(out / "offsets.npy", offsets)
    return {"tokens": int(offsets[-1])}


@lru_cache(maxsize=1)
def _encoder(path: Path) -> Encoder:
    """Building the fast path takes a moment; a worker encodes many shards with the same tokenizer."""
    return Encoder(path)
