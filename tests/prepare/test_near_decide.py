"""What goes as a near duplicate: what is truly similar to a record that stays, whatever the shards; nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_shards import Stored, jaccard, plain_decide, plain_set, store

from sheaf.errors import CorruptStore
from sheaf.prepare import near, words
from sheaf.prepare.near import buckets, candidates, greedy, minhash

VOCABULARY = [f"word{i}" for i in range(2000)]


def document(rng: random.Random, words: int) -> list[str]:
    return [rng.choice(VOCABULARY) for _ in range(words)]


def edited(rng: random.Random, words: list[str], share: float) -> list[str]:
    return [rng.choice(VOCABULARY) if rng.random() < share else word for word in words]


def families(seed: int, n: int) -> list[str]:
    """Texts of very different lengths, some of them edited copies of others or of such copies."""
    rng = random.Random(seed)
    made: list[list[str]] = []
    while len(made) < n:
        made.append(document(rng, rng.choice([0, 1, 3, 5, 8, 30, 200])))
        for _ in range(rng.choice([0, 0, 1, 4])):
            made.append(edited(rng, rng.choice(made[-4:]), rng.uniform(0, 0.04)))
    texts = [rng.choice([" ", "  ", ", "]).join(words) for words in made]
    rng.shuffle(texts)
    return list(dict.fromkeys(texts))


def spread(texts: list[str], shards: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    numbers = [rng.randrange(shards) for _ in texts]
    return [sorted(set(numbers)).index(n) for n in numbers]  # no shard without records


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_the_outcome_is_that_of_comparing_all_candidates_in_plain_python(tmp_path: Path, threshold: float) -> None:
    stored = store(tmp_path, families(1, 250), threshold=threshold)
    result = stored.decide(threshold)
    assert (result.of.tolist(), result.limited) == plain_decide(stored, threshold)
    assert (result.of >= 0).sum() > 20  # of 250, also of those that differ in spaces and commas only
    sets = [plain_set(text) for text in stored.texts]
    for i, of in enumerate(result.of.tolist()):
        expected = jaccard(sets[i], sets[of]) if of >= 0 else 0
        assert result.similarity[i] == np.float32(expected)
        assert expected >= threshold or of < 0


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), shards=st.integers(1, 3), members=st.integers(1, 4), pairs=st.integers(1, 4))
def test_bounded_comparisons_are_the_same_in_plain_python_and_in_any_shards(
    tmp_path_factory: pytest.TempPathFactory, seed: int, shards: int, members: int, pairs: int
) -> None:
    rng = random.Random(seed)
    form = document(rng, 60)
    texts = list(dict.fromkeys(" ".join(edited(rng, form, 0.05)) for _ in range(30)))
    stored = store(tmp_path_factory.mktemp("near"), texts, spread(texts, shards, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "MEMBERS", members)
        patch.setattr(greedy, "PAIRS", pairs)
        result = stored.decide()
    assert (result.of.tolist(), result.limited) == plain_decide(stored, members=members, pairs=pairs)


def test_the_outcome_does_not_depend_on_shards_partitions_windows_or_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = families(2, 200)
    once = store(tmp_path / "one", texts).decide()
    for shards in (3, len(texts)):
        again = store(tmp_path / str(shards), texts, spread(texts, shards)).decide()
        assert again.of.tolist() == once.of.tolist()
        assert again.similarity.tolist() == once.similarity.tolist()
    monkeypatch.setattr(buckets, "_PARTITION", 2000)
    monkeypatch.setattr(greedy, "TOUCHED", 50)
    monkeypatch.setattr(words, "PIECE", 1000)
    assert store(tmp_path / "small", texts, spread(texts, 4)).decide().of.tolist() == once.of.tolist()


def test_a_chain_of_similar_texts_loses_only_what_is_like_one_that_stays(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(200)]
    chain = [" ".join([*words[: 200 - 12 * i], *(f"v{i}" for i in range(12 * i))]) for i in range(6)]
    sets = [plain_set(text) for text in chain]
    assert all(jaccard(a, b) >= 0.8 for a, b in pairwise(sets))
    assert jaccard(sets[0], sets[2]) < 0.8
    assert store(tmp_path, chain).decide().of.tolist() == [-1, 0, -1, 2, -1, 4]


@pytest.mark.parametrize(("common", "goes"), [(80, True), (79, False)])
def test_a_record_right_at_the_threshold_goes_and_one_just_below_it_stays(
    tmp_path: Path, common: int, goes: bool
) -> None:
    start, ends = [f"w{i}" for i in range(common + 4)], [[f"{side}{i}" for i in range(10)] for side in "ab"]
    a, b = (" ".join([*start, *end]) for end in ends)
    assert (jaccard(plain_set(a), plain_set(b)) >= 0.8) == goes
    assert store(tmp_path, [a, b]).decide().of.tolist() == [-1, 0 if goes else -1]


def test_long_works_with_a_shared_licence_lose_none(tmp_path: Path) -> None:
    rng = random.Random(3)
    header, footer = document(rng, 500), document(rng, 2500)
    works = [" ".join([*header, *document(rng, rng.randint(3000, 9000)), *footer]) for _ in range(40)]
    result = store(tmp_path, works, spread(works, 4)).decide()
    assert (result.of < 0).all()


def test_case_and_punctuation_alone_make_no_other_text(tmp_path: Path) -> None:
    texts = [
        "It was a bright cold day in April, and so on.",
        "IT WAS A BRIGHT, COLD DAY IN APRIL AND SO ON!",
        "Yes.",
        "yes",
    ]
    result = store(tmp_path, [*texts, "", "…", "—"]).decide()
    assert result.of.tolist() == [-1, 0, -1, 2, -1, -1, -1]
    assert result.similarity.tolist()[:4] == [0, 1, 0, 1]


SENTENCES = {
    "zh": "我们昨天下午在图书馆门口见面然后一起去河边散步直到太阳完全落山才回家吃饭",
    "ja": "昨日の午後に図書館の前で会ってから川まで散歩して夕日が沈むまで話し続けました",
    "th": "เมื่อวานตอนบ่ายเราพบกันหน้าห้องสมุดแล้วเดินเล่นไปที่แม่น้ำจนพระอาทิตย์ตกดิน",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_texts_without_spaces_are_compared_by_characters(tmp_path: Path, language: str) -> None:
    text = SENTENCES[language] * 2
    rng = random.Random(5)
    other = "".join(rng.sample(text, len(text)))
    result = store(tmp_path, [text, text[1:], other]).decide()
    assert result.of.tolist() == [-1, 0, -1]


def test_a_record_that_other_rules_drop_neither_goes_again_nor_takes_others_with_it(tmp_path: Path) -> None:
    text = " ".join(document(random.Random(6), 200))
    stored = store(tmp_path, [f"{text} {end}" for end in ("one", "two", "three")])
    assert stored.decide().of.tolist() == [-1, 0, 0]
    assert stored.decide(eligible=[False, True, True]).of.tolist() == [-1, -1, 1]
    assert stored.decide(eligible=[True, False, True]).of.tolist() == [-1, -1, 0]


def test_other_filters_and_a_near_threshold_decide_anew_without_reading_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store(tmp_path, families(7, 60))
    stored.decide()
    monkeypatch.setattr(candidates, "_texts", None)
    monkeypatch.setattr(minhash, "read_keys", None)
    eligible = [i % 3 > 0 for i in range(len(stored.texts))]
    assert stored.decide(0.85, eligible).of.tolist() == plain_decide(stored, 0.85, eligible)[0]


def test_candidates_of_other_records_are_found_anew_and_the_old_ones_removed(tmp_path: Path) -> None:
    texts = families(8, 60)
    stored = store(tmp_path, texts)
    stored.decide()
    fewer = Stored(stored.workspace, stored.shards, texts[10:], stored.shard[10:], stored.row[10:])
    assert fewer.decide().of.tolist() == plain_decide(fewer)[0]
    assert len(list(stored.workspace.near.iterdir())) == 1


def test_no_records_and_no_candidates_are_no_trouble(tmp_path: Path) -> None:
    stored = store(tmp_path, ["one lonely text of seven words only"])
    assert stored.decide().of.tolist() == [-1]
    none = Stored(stored.workspace, stored.shards, [], stored.shard[:0], stored.row[:0])
    assert none.decide().of.tolist() == []
    assert Stored(stored.workspace, [], [], stored.shard[:0], stored.row[:0]).decide().of.tolist() == []


def test_candidates_that_changed_on_the_disk_are_not_believed(tmp_path: Path) -> None:
    stored = store(tmp_path, families(9, 60))
    stored.decide()
    runs = next(stored.workspace.near.glob("*/runs"))
    content = bytearray(runs.read_bytes())
    content[0] ^= 1
    runs.write_bytes(content)
    with pytest.raises(CorruptStore, match="changed"):
        stored.decide()


KILLED = """
import os, signal, sys
import numpy as np
from sheaf.corpus.workspace import Workspace
from sheaf.prepare import near, words
from sheaf.prepare.near import buckets, candidates, shingles
module, function = sys.argv[2].split(".")
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr({"buckets": buckets, "candidates": candidates, "shingles": shingles}[module], function, die)
shards, shard, row = sys.argv[3].split(","), np.load(sys.argv[1] + "/shard.npy"), np.load(sys.argv[1] + "/row.npy")
near.decide(Workspace.at(sys.argv[1]), shards, shard, row, np.ones(len(row), bool), 0.8)
"""


@pytest.mark.parametrize(
    "moment", ["buckets._groups", "buckets._write_slots", "shingles.sets", "candidates._remove_others"]
)
def test_a_kill_leaves_nothing_half(tmp_path: Path, moment: str) -> None:
    stored = store(tmp_path, families(10, 80), spread(families(10, 80), 3))
    np.save(tmp_path / "shard.npy", stored.shard)
    np.save(tmp_path / "row.npy", stored.row)
    command = [sys.executable, "-c", KILLED, str(tmp_path), moment, ",".join(stored.shards)]
    assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
    finished = [p for p in stored.workspace.near.iterdir() if not p.name.startswith(".")]
    assert len(finished) == (moment == "candidates._remove_others")
    stored.workspace.create()
    assert [p.name for p in stored.workspace.near.iterdir()] == [p.name for p in finished]
    assert stored.decide().of.tolist() == plain_decide(stored)[0]


def test_many_forms_that_are_all_a_little_alike_cost_a_bounded_number_of_comparisons(tmp_path: Path) -> None:
    rng = random.Random(11)
    form = document(rng, 150)
    forms = [" ".join([*form, *document(rng, 32)]) for _ in range(1500)]
    assert 0.6 < jaccard(plain_set(forms[0]), plain_set(forms[1])) < 0.8
    copies = [" ".join([*text.split()[:-2], "changed", "end"]) for text in forms[:50]]
    result = store(tmp_path, forms + copies).decide()
    assert (result.of[:1500] < 0).all()
    assert result.of[1500:].tolist() == list(range(50))  # copies share the most bands: they are compared first
    assert result.limited > 1000
    assert result.compared <= greedy.PAIRS * 1550


def test_clusters_and_overlap_are_told_by_rank_and_source() -> None:
    of = np.array([-1, 0, -1, 2, 2, -1, 0, 2], np.int64)
    source = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32)
    kept, sizes = near.clusters.largest(of, 5)
    assert (kept.tolist(), sizes.tolist()) == ([2, 0], [4, 3])
    assert near.clusters.largest(of, 1)[0].tolist() == [2]
    assert near.clusters.members(of, 2).tolist() == [3, 4, 7]
    assert near.clusters.overlap(of, source, 2).tolist() == [[2, 0], [3, 0]]
