"""Records of given texts in a workspace, their MinHash stage done; and the plain twin of near duplicates."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
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


def band_keys(stored: Stored, threshold: float) -> np.ndarray:
    """uint64 (bands, n); a record without words has a key of its own in each."""
    keys, counts = minhash.band_keys(pa.array(stored.texts, pa.large_string()), *minhash.shape(threshold))
    return np.where(counts > 0, keys, np.arange(len(counts), dtype=np.uint64))


def plain_decide(
    stored: Stored,
    threshold: float = 0.8,
    eligible: Sequence[bool] | None = None,
    members: int = 10**9,
    pairs: int = 10**9,
) -> tuple[list[int], int]:
    """The twin of `near.decide`: `of`, and how many records stayed with candidates left to compare."""
    sets, keys = [plain_set(t) for t in stored.texts], band_keys(stored, threshold)
    kept_with: dict[tuple[int, int], list[int]] = {}
    of, limited = [-1] * len(sets), 0
    for i in range(len(sets)):
        if not sets[i] or (eligible is not None and not eligible[i]):
            continue
        buckets = [kept_with.setdefault((band, int(key)), []) for band, key in enumerate(keys[:, i])]
        shared = Counter(k for bucket in buckets for k in bucket[:members])
        left, full = pairs, any(len(bucket) > members for bucket in buckets)
        for k, _ in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
            if min(len(sets[i]), len(sets[k])) / max(len(sets[i]), len(sets[k])) < threshold:
                continue
            if left == 0:
                full = True
                break
            left -= 1
            if jaccard(sets[i], sets[k]) >= threshold:
                of[i] = k
                break
        if of[i] < 0:
            limited += full
            for bucket in buckets:
                bucket.append(i)
    return of, limited
