"""Committing: what was selected, with its tokens, becomes a version that HEAD names.

Everything goes to disk piece by piece, in rank order (source, id): decisions as they were made, and the kept records
with text as documents, whose columns are filled shard by shard from the token files' offsets. Memory: one shard's
offsets and one piece. The marker comes last, then HEAD.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike

from sheaf.corpus.columns import Array, chunks, new_array, release
from sheaf.corpus.decided import Decided
from sheaf.corpus.documents import DTYPES, Documents
from sheaf.corpus.schema import DECISIONS
from sheaf.corpus.version import FORMAT, CorpusVersion, corpus_digest
from sheaf.corpus.workspace import Workspace
from sheaf.files import checked, digest_json, read_done, task_folder, write_file

_OTHERS: dict[str, DTypeLike] = {"row": np.int32, "bytes": np.int64}  # of a document's record: its row, its text's size


def commit(
    workspace: Workspace,
    *,
    sources: list[dict[str, Any]],
    prepare: dict[str, Any],
    live_shards: list[str],
    key: str,
    tokenizer: str,
    rendering: dict[str, Any],
    encoder: dict[str, Any],
    content: str,
    decided: Decided,
    ledger: pa.Table,
    quarantine: pa.Table,
    about: dict[str, Any],
) -> CorpusVersion:
    """Write a version and make it HEAD.

    rendering: what the tokens were made by; its "digest" names their folder. encoder: vocab_size, end_of_text,
    token_dtype of the tokenizer. about: more for the manifest (counts, stages, …).
    """
    names = [s["name"] for s in sources]
    columns = decided.folder / "documents"
    columns.mkdir()
    tokens = [workspace.tokens(rendering["digest"], shard) for shard in live_shards]
    documents = _documents(columns, tokens, decided, prepare["dedup"]["exact"])
    manifest = {
        "format": FORMAT,
        "corpus": corpus_digest(content, rendering["digest"]),
        "fingerprint": _fingerprint(names, documents, rendering["digest"]),
        "key": key,
        "sources": sources,
        "prepare": prepare,
        "shards": live_shards,
        "tokenizer": tokenizer,
        "rendering": rendering,
        **encoder,
        "documents": len(documents),
        "tokens": sum(int(documents.length[a:b].sum()) for a, b in chunks(len(documents))),
        **about,
        "tool": f"sheaf {importlib.metadata.version('sheaf')}",
    }
    name = f"{manifest['corpus']}.{digest_json(manifest)[:8]}"
    if read_done(workspace.corpus(name)) is None:
        with task_folder(workspace.corpus(name), stage="commit") as out:
            for file in columns.iterdir():
                shutil.move(file, out / file.name)
            _write_decisions(decided, out / "decisions.parquet")
            for table, file in ((ledger, "ledger"), (quarantine, "quarantine")):
                pq.write_table(table, out / f"{file}.parquet", compression="zstd")
            (out / "manifest.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    write_file(workspace.head, f"{name}\n".encode())
    return CorpusVersion.open(workspace)


def _write_decisions(decided: Decided, path: Path) -> None:
    with pq.ParquetWriter(path, DECISIONS, compression="zstd") as writer:
        for table in decided.tables():
            writer.write_table(table)


def _documents(folder: Path, tokens: Sequence[Path], decided: Decided, exact: bool) -> Documents:
    """The kept records as documents (in rank order), with their rows and text bytes, as columns in the folder."""
    offset, length = _tokens_by_rank(tokens, decided)
    total = sum(int(_times(decided, length, a, b, exact).sum()) for a, b in chunks(len(decided)))
    columns = {
        name: new_array(folder / f"{name}.npy", dtype, (total, 16) if name == "id" else total)
        for name, dtype in (DTYPES | _OTHERS).items()
    }
    done = 0
    for a, b in chunks(len(decided)):
        rank = np.repeat(np.arange(a, b), _times(decided, length, a, b, exact))
        here = slice(done, done + len(rank))
        if len(rank):
            columns["id"][here] = np.ascontiguousarray(decided.id[rank]).view(np.uint8).reshape(-1, 16)
        values = {n: getattr(decided, n) for n in ("source", "shard", "row")}
        for name, column in {**values, "offset": offset, "length": length, "bytes": decided.text_bytes}.items():
            columns[name][here] = column[rank]
        done += len(rank)
        release(*columns.values(), offset, length, decided.id, decided.text_bytes, *values.values())
    return Documents(**{name: columns[name] for name in DTYPES})


def _tokens_by_rank(tokens: Sequence[Path], decided: Decided) -> tuple[Array, Array]:
    """Where each record's tokens begin in the token file of its shard, and how many there are: int64 (records,)."""
    offset, length = (new_array(decided.folder / f"tokens-{n}.npy", np.int64, len(decided)) for n in ("at", "many"))
    for number, folder in enumerate(tokens):
        row, rank = decided.rows_of(number)
        bounds = np.load(checked(folder / "offsets.npy"), allow_pickle=False)
        offset[rank] = bounds[row]
        length[rank] = bounds[row + 1] - bounds[row]
        release(offset, length, decided.rank_at)
    return offset, length


def _times(decided: Decided, length: Array, start: int, stop: int, exact: bool) -> Array:
    """How often each of these records is a document. Pictures and sounds are none, nor is what gave no tokens."""
    trains = decided.kept(start, stop) & (decided.text_bytes[start:stop] > 0) & (length[start:stop] > 1)
    return trains * (np.int64(1) if exact else decided.occurrences[start:stop].astype(np.int64))


def _fingerprint(names: list[str], documents: Documents, rendering: str) -> str:
    h = hashlib.blake2b(repr((names, rendering)).encode(), digest_size=16)
    for column in (documents.source, documents.id, documents.length):
        for a, b in chunks(len(documents)):
            h.update(np.ascontiguousarray(column[a:b]).tobytes())
    return h.hexdigest()
