"""The scoring stage: what `corpus.signals` lists, computed for every record and stored beside its shard, row by row.

Scores are facts (how many characters, what share of them repeats); what follows from them is decided in `select`, so a
changed threshold reads and scores nothing again. One pass over a text's bytes counts everything (`measure`), the words
it leaves give the repetitions (`repetition`), a kilobyte of it the language (`language`); here integers become shares.
No Python object per record. Memory: a batch of texts, 10 bytes a byte of the longest one (of one-letter words, 25) and
the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheaf.corpus.schema import SCORES
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json, Task
from sheaf.files import checked, task_folder
from sheaf.kernel import read_only
from sheaf.prepare import language
from sheaf.prepare import measure as m
from sheaf.prepare import repetition as r
from sheaf.prepare.characters import classes

STAGE = "signals-1"  # name and version: part of the folder's name
BATCH_BYTES = 16 << 20  # of text in memory at once, on average
ROW_GROUP = 16384  # of scores
BLOCK_BYTES = 4 << 20  # of text that the kernels see at once: their arrays stay small whatever the rows hold


def task(workspace: Workspace, shard: str) -> Task:
    arguments = {"workspace": workspace.where, "shard": shard}
    return Task("sheaf.prepare.score:score_shard", arguments, label=f"score {shard[:8]}")


def score_shard(workspace: str, shard: str) -> Json:
    store = Workspace.at(workspace)
    with task_folder(store.scores(shard, STAGE), stage="score") as out:
        rows = score_file(checked(store.shard(shard) / "records.parquet"), out / "scores.parquet")
    return {"records": rows}


def score_file(records: Path, scores: Path) -> int:
    """Write the scores of a file of records, some rows at a time. Returns how many."""
    rows = 0
    with (
        pq.ParquetFile(records, page_checksum_verification=True) as file,
        pq.ParquetWriter(scores, SCORES, compression="zstd") as writer,
    ):
        at_once = _rows_at_once(file.metadata)
        batches = file.iter_batches(at_once, columns=["id", "kind", "text"])
        while several := [scored(batch) for batch in islice(batches, ROW_GROUP // at_once)]:
            writer.write_table(pa.concat_tables(several), row_group_size=ROW_GROUP)
            rows += sum(map(len, several))
    return rows


def _rows_at_once(file: pq.FileMetaData) -> int:
    """Rows that hold about BATCH_BYTES: a batch of a few short texts costs more around the kernels than in them."""
    groups = [file.row_group(n) for n in range(file.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    return min(max(BATCH_BYTES * file.num_rows // max(size, 1), 1), ROW_GROUP)


def read(workspace: Workspace, shard: str, columns: list[str] | None = None) -> pa.Table:
    """The scores of a shard, or some columns of them. Raises CorruptStore."""
    return pq.read_table(checked(workspace.scores(shard, STAGE) / "scores.parquet"), columns=columns)


def scored(records: pa.RecordBatch) -> pa.Table:
    """The scores of some rows of records.parquet: schema SCORES."""
    columns = {"id": records["id"], "kind": records["kind"]} | signals(records["text"])
    return pa.table(columns).select(SCORES.names).cast(SCORES)


def signals(texts: pa.LargeStringArray) -> dict[str, NDArray[np.generic] | pa.Array]:
    """Every signal of each text, by name; those of a null are those of an empty text."""
    data, offsets = bytes_of(texts)
    counts = np.zeros((len(texts), m.COLUMNS), np.int64)
    repeats = np.zeros((len(texts), r.COLUMNS), np.int64)
    for first, last in _blocks(offsets):
        _count(data, offsets[first : last + 1], counts[first:last], repeats[first:last])
    codes, confidence = language.classify(data, offsets)
    lettered = counts[:, m.LETTERS] > 0
    said = {
        "bytes": np.diff(offsets),
        "language": pc.if_else(lettered, codes, ""),
        "language_confidence": np.where(lettered, confidence, 0.0),
    }
    return said | _columns(counts.T, repeats.T)


def bytes_of(texts: pa.LargeStringArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes that the texts share, and int64 (rows + 1,) into them, without a copy."""
    if texts.null_count:
        texts = texts.fill_null("")
    if len(texts) == 0:
        return read_only(np.zeros(0, np.uint8)), read_only(np.zeros(1, np.int64))
    _, offsets, data = texts.buffers()
    starts = read_only(np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8))
    return read_only(np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)), starts


def _blocks(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about BLOCK_BYTES each, at least one row."""
    first, rows = 0, len(offsets) - 1
    while first < rows:
        last = int(np.searchsorted(offsets, offsets[first] + BLOCK_BYTES, side="right")) - 1
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last


def _count(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], counts: NDArray[np.int64], repeats: NDArray[np.int64]
) -> None:
    rows = len(offsets) - 1
    room = (
        int(offsets[-1] - offsets[0]) // 2 + rows
    )  # a word takes a byte and the blank behind it; pages unused stay unreal
    word_hash, word_length = np.empty(room, np.uint64), np.empty(room, np.int32)
    line_end, line_opens = np.empty(room, np.int64), np.empty(room, np.bool_)
    ends = np.zeros((rows, 2), np.int64)
    phrases, marks = m.phrase_automaton()
    m.measure(data, offsets, classes(), phrases, marks, counts, word_hash, word_length, line_end, line_opens, ends)
    r.repetition(word_hash, word_length, line_end, line_opens, ends, repeats)


def _columns(count: NDArray[np.int64], repeat: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """count: int64 (measure.COLUMNS, rows); repeat: int64 (repetition.COLUMNS, rows)."""
    words, lines, solid = count[m.WORDS], count[m.LINES], count[m.SOLID]
    return {
        "characters": count[m.CHARACTERS],
        "words": words,
        "lines": count[m.LINE_FEEDS] + 1,
        "spaceless": _share(count[m.SPACELESS_LETTERS], count[m.LETTERS]),
        "mean_word_length": _share(solid, words),
        "hash_word_ratio": _share(count[m.HASH_SIGNS], words),
        "ellipsis_word_ratio": _share(count[m.ELLIPSES], words),
        "bullet_lines": _share(count[m.BULLET_LINES], lines),
        "ellipsis_lines": _share(count[m.ELLIPSIS_LINES], lines),
        "alpha_words": _share(count[m.ALPHA_WORDS], words),
        "stop_words": count[m.STOP_WORDS],
        "duplicate_lines": _share(repeat[r.DUPLICATE_LINES], lines),
        "duplicate_paragraphs": _share(repeat[r.DUPLICATE_PARAGRAPHS], repeat[r.PARAGRAPHS]),
        "duplicate_line_characters": _share(repeat[r.DUPLICATE_LINE_CHARACTERS], solid),
        "duplicate_paragraph_characters": _share(repeat[r.DUPLICATE_PARAGRAPH_CHARACTERS], solid),
        **{f"top_{n}gram": _share(repeat[r.TOP + k], solid) for k, n in enumerate(r.TOP_SIZES)},
        **{f"duplicate_{n}gram": _share(repeat[r.DUPLICATE + k], solid) for k, n in enumerate(r.DUPLICATE_SIZES)},
        "terminal_lines": _share(count[m.TERMINAL_LINES], lines),
        "short_lines": _share(count[m.SHORT_LINES], lines),
        "newline_word_ratio": _share(count[m.LINE_FEEDS], words),
        "c4_lines": count[m.C4_LINES],
        "c4_sentences": count[m.C4_SENTENCES],
        "lorem_ipsum": count[m.LOREM_IPSUM],
        "curly_brackets": count[m.CURLY_BRACKETS],
        "javascript_lines": count[m.JAVASCRIPT_LINES],
        "policy_lines": count[m.POLICY_LINES],
    }


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / whole; of nothing, 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
