"""The scoring stage: numbers per record, beside the shard and row-aligned with it.

Scores are facts (how many characters); what follows from them is decided in `select`, so a changed threshold reads and
scores nothing again. Arrow's kernels do the counting; no Python object per record.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sheaf.corpus import shards
from sheaf.corpus.schema import SCORES
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import checked, task_folder

STAGE = "length-2"  # name and version: part of the folder's name


def task(workspace: Workspace, shard: str) -> Task:
    arguments = {"workspace": str(workspace.root), "shard": shard}
    return Task("sheaf.prepare.score:score_shard", arguments, label=f"score {shard[:8]}")


def score_shard(workspace: str, shard: str) -> Json:
    store = Workspace(Path(workspace))
    table = shards.read(store.shard(shard), "records", ["id", "kind", "text"])
    text = table["text"]
    scores = pa.table(
        {
            "id": table["id"],
            "kind": table["kind"],
            "characters": pc.utf8_length(text),
            "bytes": pc.binary_length(text),
            "words": pc.count_substring_regex(text, r"[^\s]+"),
            "lines": pc.add(pc.count_substring(text, "\n"), 1),
        }
    )
    scores = scores.cast(pa.schema([SCORES.field(name) for name in scores.column_names]))
    with task_folder(store.scores(shard, STAGE), stage="score") as out:
        pq.write_table(scores, out / "scores.parquet", compression="zstd")
    return {"records": len(scores)}


def read(workspace: Workspace, shard: str) -> pa.Table:
    return pq.read_table(checked(workspace.scores(shard, STAGE) / "scores.parquet"))
