"""The scoring stage: a row of scores a record, in their order, however records are batched and how often it runs."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from prose import DECLARATION
from selecting import Store

from sheaf.corpus import shards
from sheaf.corpus.schema import SCORES
from sheaf.errors import CorruptStore
from sheaf.prepare import score

TEXTS = [f"{n} {text[: n % 700]}" for n, text in enumerate(list(DECLARATION.values()) * 300)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.at(tmp_path)
    made.add({("a", "x.txt"): TEXTS, ("b", "y.txt"): [*TEXTS[:50], "of b alone\n"]})
    return made


def scored(store: Store) -> Path:
    work = score.task(store.workspace, store.shards[0])
    assert score.score_shard(**work.arguments) == {"records": len(set(TEXTS)) + 1}
    return store.workspace.scores(store.shards[0], score.STAGE) / "scores.parquet"


def test_scores_stand_row_by_row_beside_their_records(store: Store) -> None:
    scored(store)
    scores = score.read(store.workspace, store.shards[0])
    records = shards.read(store.workspace.shard(store.shards[0]), "records", ["id", "kind", "text"])
    assert scores.schema.equals(SCORES)
    assert scores["id"].equals(records["id"])
    assert scores["kind"].equals(records["kind"])
    assert scores["characters"].to_pylist() == pc.utf8_length(records["text"]).to_pylist()
    assert scores["bytes"].to_pylist() == pc.binary_length(records["text"]).to_pylist()
    assert scores["lines"].to_pylist() == [text.count("\n") + 1 for text in records["text"].to_pylist()]


def test_a_column_of_scores_can_be_read_alone(store: Store) -> None:
    scored(store)
    some = score.read(store.workspace, store.shards[0], ["words", "language"])
    assert some.equals(score.read(store.workspace, store.shards[0]).select(["words", "language"]))


def test_scores_do_not_depend_on_how_records_are_batched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    records = store.workspace.shard(store.shards[0]) / "records.parquet"
    at_once, bit_by_bit = scored(store), records.parents[2] / "bit by bit.parquet"
    monkeypatch.setattr(score, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(score, "ROW_GROUP", 700)
    assert score.score_file(records, bit_by_bit) == len(set(TEXTS)) + 1
    assert pq.ParquetFile(bit_by_bit).num_row_groups > pq.ParquetFile(at_once).num_row_groups
    assert pq.read_table(bit_by_bit).equals(pq.read_table(at_once))


def test_scoring_again_writes_the_same_bytes(store: Store) -> None:
    first = scored(store).read_bytes()
    assert scored(store).read_bytes() == first


def test_a_shard_without_records_has_scores_without_rows(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    store.add({("a", "x.txt"): []})
    assert score.score_shard(**score.task(store.workspace, store.shards[0]).arguments) == {"records": 0}
    assert score.read(store.workspace, store.shards[0]).schema.equals(SCORES)


def test_scores_whose_bytes_changed_are_refused(store: Store) -> None:
    path = scored(store)
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(CorruptStore, match=r"scores\.parquet"):
        score.read(store.workspace, store.shards[0])
