"""MinHash keys: similar texts are likely to share one, unlike texts are not, and keys are a text's alone."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_shards import jaccard, plain_set, store

from sheaf.files import read_done
from sheaf.prepare.near import minhash, shingles


def keys_of(texts: list[str], threshold: float = 0.8) -> np.ndarray:
    return minhash.band_keys(pa.array(texts, pa.large_string()), *minhash.shape(threshold))[0]


def similar_pair(rng: random.Random, common: int, own: int) -> tuple[str, str]:
    """Two texts of words that occur once, of Jaccard similarity common / (common + 2 own)."""
    start = [f"w{rng.getrandbits(60)}" for _ in range(common + 4)]
    a, b = ([*start, *(f"w{rng.getrandbits(60)}" for _ in range(own))] for _ in range(2))
    return " ".join(a), " ".join(b)


WORDS = st.sampled_from(["a", "b", "C", "東", "ถ", "of_it", "·"])


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.lists(WORDS, max_size=60).map(" ".join), max_size=4))
def test_sets_of_shingles_are_those_of_the_plain_twin(texts: list[str]) -> None:
    found, starts = shingles.sets(pa.array(texts, pa.large_string()))
    runs = [found[starts[i] : starts[i + 1]] for i in range(len(texts))]
    plain = [plain_set(text) for text in texts]
    for run, own in zip(runs, plain, strict=True):
        assert (run[1:] > run[:-1]).all()
        assert len(run) == len(own)
    for i in range(len(texts)):
        for j in range(i):
            if plain[i] and plain[j]:
                common = len(np.intersect1d(runs[i], runs[j]))
                assert common / (len(runs[i]) + len(runs[j]) - common) == jaccard(plain[i], plain[j])


@pytest.mark.parametrize("threshold", [0.5, 0.55, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0])
def test_right_at_the_threshold_less_than_one_pair_in_a_hundred_is_missed(threshold: float) -> None:
    bands, rows = minhash.shape(threshold)
    assert (1 - threshold**rows) ** bands < 0.01
    assert 1 <= bands <= 48


def test_bands_are_chosen_by_the_threshold() -> None:
    assert minhash.shape(0.8) == (16, 6)
    assert minhash.stage(0.8) == "minhash-1-16x6"
    assert minhash.stage(0.85) == minhash.stage(0.8)
    assert minhash.stage(0.9) != minhash.stage(0.8)


@pytest.mark.parametrize(("threshold", "common", "own"), [(0.8, 80, 10), (0.5, 40, 20), (0.9, 180, 10), (1.0, 9, 0)])
def test_pairs_right_at_the_threshold_share_a_key(threshold: float, common: int, own: int) -> None:
    rng = random.Random(7)
    pairs = [similar_pair(rng, common, own) for _ in range(2000)]
    assert jaccard(*map(plain_set, pairs[0])) == threshold
    a, b = (keys_of([pair[i] for pair in pairs], threshold) for i in range(2))
    assert np.mean((a == b).any(axis=0)) > 0.985


def test_unlike_texts_rarely_share_a_key() -> None:
    rng = random.Random(8)
    pairs = [similar_pair(rng, 20, 40) for _ in range(2000)]  # similarity 0.2: expected 16 · 0.2^6 = 0.1%
    a, b = (keys_of([pair[i] for pair in pairs]) for i in range(2))
    assert np.mean((a == b).any(axis=0)) < 0.005


def test_keys_are_those_of_plain_integers() -> None:
    text = similar_pair(random.Random(9), 5000, 0)[0]  # longer than what is gone through at once
    factor, offset = (p.tolist() for p in minhash._permutations(6))
    upper = [int(h) >> 32 for h in shingles.of(pa.array([text], pa.large_string()))[0]]
    least = [min((x * a + b) % 2**32 for x in upper) for a, b in zip(factor, offset, strict=True)]
    h = 1
    for value in least:
        h ^= value
        for constant in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            h = ((h ^ (h >> 33)) * constant) % 2**64
        h ^= h >> 33
    assert keys_of([text])[0, 0] == h


def test_keys_of_a_text_do_not_depend_on_its_neighbours() -> None:
    texts = ["", "one", "one two three four five six", "…", *similar_pair(random.Random(1), 50, 5)]
    together = keys_of(texts)
    for i, text in enumerate(texts):
        assert (together[:, i] == keys_of([text])[:, 0]).all()


def test_the_stage_writes_a_column_of_keys_for_each_record_in_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minhash, "TEXTS", 16)  # read at once
    texts = [similar_pair(random.Random(i), 30, 1)[0] for i in range(40)] + ["", "!"]
    stored = store(tmp_path, texts)
    keys = minhash.read_keys(stored.workspace, stored.shards[0], minhash.stage(0.8))
    counts = minhash.read_counts(stored.workspace, stored.shards[0], minhash.stage(0.8))
    assert (keys[:, stored.row] == keys_of(texts)).all()
    assert counts[stored.row].tolist() == [len(plain_set(t)) for t in texts]
    folder = stored.workspace.scores(stored.shards[0], minhash.stage(0.8))
    before = read_done(folder)
    task = minhash.task(stored.workspace, stored.shards[0], 0.8)
    assert minhash.hash_shard(**task.arguments) == {"records": len(texts)}
    assert read_done(folder) == before
