"""Records of given texts in a workspace, their MinHash stage done; and the plain twin of near duplicates."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sheaf.corpus.schema import RECORDS
from sheaf.corpus.shards import ROW_GROUP
from sheaf.corpus.workspace import Workspace
from sheaf.files import digest_of, task_folder
from sheaf.prepare import near
from sheaf.prepare.characters import SPACELESS_RANGES
from sheaf.prepare.near import minhash

SHINGLE_WORDS = 5


@dataclass(frozen=True)
class Stored:
    """Distinct texts by rank, and where each lies."""

    workspace: Workspace
    shards: list[str]
    texts: list[str]
    shard: np.ndarray
    row: np.ndarray

    def decide(self, threshold: float = 0.8, eligible: Sequence[bool] | None = None) -> near.Near:
        flags = np.ones(len(self.texts), bool) if eligible is None else np.array(eligible, bool)
        return near.decide(self.workspace, self.shards, self.shard, self.row, flags, threshold)


def store(root: Path, texts: Sequence[str], shards: Sequence[int] | None = None, threshold: float = 0.8) -> Stored:
    """texts: by rank. shards: for each the number of its shard (default: all in one); rows are sorted by id."""
    workspace = Workspace(root)
    numbers = np.zeros(len(texts), np.int32) if shards is None else np.array(shards, np.int32)
    ids = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    row, names = np.zeros(len(texts), np.int32), []
    for number in range(int(numbers.max(initial=0)) + 1):
        here = sorted(np.flatnonzero(numbers == number).tolist(), key=lambda i: ids[i])
        row[here] = np.arange(len(here))
        names.append(write_shard(workspace, [(ids[i], texts[i]) for i in here]))
        minhash.hash_shard(str(root), names[-1], threshold)
    return Stored(workspace, names, list(texts), numbers, row)


def write_shard(workspace: Workspace, records: Sequence[tuple[bytes, str]]) -> str:
    name = digest_of(*(part for record in records for part in record))
    n = len(records)
    table = pa.table(
        {
            "id": pa.array([i for i, _ in records], pa.binary(16)),
            "kind": pa.array(["text"] * n, pa.string()),
            "text": pa.array([t for _, t in records], pa.large_string()),
            "messages": pa.array([""] * n, pa.large_string()),
            "payload": pa.array([b""] * n, pa.large_binary()),
            "meta": pa.array(["{}"] * n, pa.string()),
            "origins": pa.array([[]] * n, RECORDS.field("origins").type),
        }
    ).cast(RECORDS)
    with task_folder(workspace.shard(name)) as out:
        pq.write_table(table, out / "records.parquet", row_group_size=ROW_GROUP, write_page_checksum=True)
    return name


def plain_words(text: str) -> list[str]:
    """The twin of `words.hashes`, in strings."""
    found: list[str] = []
    inside, joins = False, ""
    for character in text:
        if character == "_" and inside:
            joins += "_"
            continue
        if unicodedata.category(character)[0] not in "LMN":
            inside, joins = False, ""
            continue
        low = character.lower()[0].replace("ς", "σ")
        alone = any(low_end <= ord(character) <= high for low_end, high in SPACELESS_RANGES)
        if inside and not alone:
            found[-1] += joins + low
        else:
            found.append(low)
        inside, joins = not alone, ""
    return found


def plain_set(text: str) -> set[tuple[str, ...]]:
    words = plain_words(text)
    size = min(SHINGLE_WORDS, len(words))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)} if words else set()


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def share_a_band(stored: Stored, threshold: float = 0.8) -> np.ndarray:
    """bool (n, n): the candidates, from the keys of the records themselves."""
    texts = pa.array(stored.texts, pa.large_string())
    keys, counts = minhash.band_keys(texts, *minhash.shape(threshold))
    same = np.zeros((len(texts), len(texts)), bool)
    for band in keys:
        same |= band[:, None] == band[None, :]
    return same & (counts > 0)[:, None] & (counts > 0)[None, :]


def plain_decisions(stored: Stored, threshold: float = 0.8, eligible: Sequence[bool] | None = None) -> list[int]:
    """The twin of `near.decide`: whether each record goes (1) or not (0), by brute force over all candidate pairs."""
    sets, candidate = [plain_set(t) for t in stored.texts], share_a_band(stored, threshold)
    kept: list[int] = []
    gone = [0] * len(sets)
    for i in range(len(sets)):
        if eligible is not None and not eligible[i]:
            continue
        if any(candidate[i, k] and jaccard(sets[i], sets[k]) >= threshold for k in kept):
            gone[i] = 1
        else:
            kept.append(i)
    return gone
