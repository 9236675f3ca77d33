"""Packing uses every prediction of every document exactly once, wastes little, and never cuts what fits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_corpora import Corpus, corpora, corpus

from sheaf.corpus.documents import Documents
from sheaf.errors import CorruptStore
from sheaf.order.held_out import held_out
from sheaf.order.pack import Pack, pack_documents, packed
from sheaf.recipe import Packing

KINDS = st.sampled_from(get_args(Packing))


def whole(made: Corpus, capacity: int, kind: Packing = "best-fit") -> Pack:
    return pack_documents(made.documents, np.ones(len(made.documents), bool), len(made.names), capacity, kind)


def samples_of(pack: Pack) -> list[list[tuple[int, int, int]]]:
    """Samples as lists of (document, start, length)."""
    runs = list(zip(pack.run_document.tolist(), pack.run_start.tolist(), pack.run_length.tolist(), strict=True))
    return [runs[a:b] for a, b in itertools.pairwise(pack.sample_first_run.tolist())]


def concatenated(inputs: list[int], capacity: int) -> list[list[tuple[int, int, int]]]:
    """The twin in plain Python, token by token."""
    tokens = [(document, at) for document, n in enumerate(inputs) for at in range(n)]
    samples: list[list[tuple[int, int, int]]] = []
    for first in range(0, len(tokens), capacity):
        groups = itertools.groupby(tokens[first : first + capacity], key=lambda token: token[0])
        runs = [(document, [at for _, at in group]) for document, group in groups]
        samples.append([(document, at[0], len(at)) for document, at in runs])
    return samples


def bucketed(inputs: list[int], capacity: int, window: int) -> list[list[tuple[int, int, int]]]:
    """The twin in plain Python: rows of about equal length, the longest first."""
    pieces = [(d, s, min(capacity, n - s)) for d, n in enumerate(inputs) for s in range(0, n, capacity)]
    samples: list[list[tuple[int, int, int]]] = []
    for first in range(0, len(pieces), window):
        bucket: list[tuple[int, int, int]] = []
        for piece in sorted(pieces[first : first + window], key=lambda p: -p[2]):
            if not bucket or (len(bucket) + 1) * bucket[0][2] > capacity:
                bucket = []
                samples.append(bucket)
            bucket.append(piece)
    return [sorted(sample) for sample in samples]


def best_fit(inputs: list[int], capacity: int, window: int) -> list[list[tuple[int, int, int]]]:
    """The twin in plain Python: samples as lists of (document, start, length)."""
    samples: list[list[tuple[int, int, int]]] = []
    stacks: dict[int, list[int]] = {}
    waiting: list[tuple[int, int, int]] = []
    for d, n in enumerate(inputs):
        for start in range(0, n, capacity):
            piece = (d, start, min(capacity, n - start))
            if piece[2] == capacity:
                samples.append([piece])
            else:
                waiting.append(piece)
        if len(waiting) == window or d == len(inputs) - 1:
            for piece in sorted(waiting, key=lambda p: -p[2]):
                fitting = [room for room, stack in stacks.items() if stack and room >= piece[2]]
                room = min(fitting, default=capacity)
                if fitting:
                    number = stacks[room].pop()
                else:
                    number = len(samples)
                    samples.append([])
                samples[number].append(piece)
                stacks.setdefault(room - piece[2], []).append(number) if room > piece[2] else None
            waiting = []
    return [sorted(sample) for sample in samples]


@settings(max_examples=100, deadline=None)
@given(made=corpora, capacity=st.integers(1, 40), kind=KINDS)
def test_every_prediction_of_every_document_is_in_exactly_one_sample(
    made: Corpus, capacity: int, kind: Packing
) -> None:
    pack = whole(made, capacity, kind)
    used = [np.zeros(n - 1, int) for n in made.documents.length]
    for document, start, length in zip(pack.run_document, pack.run_start, pack.run_length, strict=True):
        assert length >= 1 and start + length <= len(used[document])
        used[document][start : start + length] += 1
    assert all((u == 1).all() for u in used)


@settings(max_examples=100, deadline=None)
@given(made=corpora, capacity=st.integers(1, 40), kind=KINDS)
def test_a_sample_fits_is_of_one_source_and_adds_up(made: Corpus, capacity: int, kind: Packing) -> None:
    pack = whole(made, capacity, kind)
    assert pack.source_first_sample[-1] == len(pack.sample_tokens) == len(pack.sample_first_run) - 1
    for sample in range(len(pack.sample_tokens)):
        runs = slice(pack.sample_first_run[sample], pack.sample_first_run[sample + 1])
        length = pack.run_length[runs].astype(int)
        assert 1 <= length.sum() == pack.sample_tokens[sample] <= capacity
        assert (length**2).sum() == pack.sample_squares[sample]
        assert length.max() == pack.sample_longest[sample]
        assert kind != "padded" or len(length) * length.max() <= capacity
        source = np.searchsorted(pack.source_first_sample, sample, side="right") - 1
        assert (made.documents.source[pack.run_document[runs]] == source).all()
    predictions = made.documents.length - 1
    assert pack.source_tokens.tolist() == [
        predictions[made.documents.source == s].sum() for s in range(len(made.names))
    ]


@settings(max_examples=50, deadline=None)
@given(made=corpora, capacity=st.integers(1, 40), kind=st.sampled_from(["best-fit", "padded"]))
def test_a_document_that_fits_is_never_cut(made: Corpus, capacity: int, kind: Packing) -> None:
    pack = whole(made, capacity, kind)
    runs = np.bincount(pack.run_document, minlength=len(made.documents))
    assert np.array_equal(runs, -(-(made.documents.length - 1) // capacity))


@pytest.mark.parametrize("count", [0, 1, 300, 9_000])
def test_the_kernels_pack_as_plain_loops_do(count: int) -> None:
    lengths = (np.random.default_rng(count).lognormal(3, 1, count) + 2).astype(int).tolist()
    made = corpus([lengths], shards=1)
    pack = whole(made, 64)
    inputs = (made.documents.length - 1).tolist()
    assert samples_of(pack) == best_fit(inputs, 64, 4096)
    assert samples_of(whole(made, 64, "concatenate")) == concatenated(inputs, 64)
    assert samples_of(whole(made, 64, "padded")) == bucketed(inputs, 64, 4096)


@pytest.mark.parametrize(("mean", "sigma"), [(5.5, 1.2), (6.5, 1.0), (6.9, 1.4)])
def test_hardly_a_position_is_padding_on_lognormal_lengths(mean: float, sigma: float) -> None:
    """Medians of 245, 665 and 992 tokens, as web text, articles and long documents have; T = 2048."""
    rng = np.random.default_rng(1)
    n = 40_000
    length = np.maximum(rng.lognormal(mean, sigma, n), 2).astype(np.int64)
    nowhere, ids = np.zeros(n, np.int32), rng.integers(0, 256, (n, 16), dtype=np.uint8)
    documents = Documents(ids, nowhere, nowhere, length * 0, length)
    for kind, least in (("best-fit", 0.99), ("concatenate", 0.9999), ("padded", 0.99)):
        pack = pack_documents(documents, np.ones(n, bool), 1, 2048, kind)
        rows = np.diff(pack.sample_first_run)
        positions = (rows * pack.sample_longest).sum() if kind == "padded" else len(rows) * 2048
        assert least <= pack.sample_tokens.sum() / positions <= 1, kind


def test_held_out_is_decided_by_the_id_alone_and_grows_with_the_fraction() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (20_000, 16), dtype=np.uint8)
    one, five = held_out(ids, 0.01), held_out(ids, 0.05)
    assert not held_out(ids, 0.0).any() and (one <= five).all()
    assert abs(five.mean() - 0.05) < 5 * np.sqrt(0.05 * 0.95 / len(ids))
    shuffled = np.random.default_rng(1).permutation(len(ids))
    assert np.array_equal(held_out(ids[shuffled], 0.05), five[shuffled])
    edge = np.zeros((2, 16), np.uint8)
    edge[0, 8], edge[1, 8:] = 0x80, [0x7F] + [0xFF] * 7
    assert held_out(edge, 0.5).tolist() == [False, True]


def test_the_two_splits_share_no_document_and_lose_none() -> None:
    made = corpus([[5] * 60, [9] * 40])
    train, held = (packed(made.documents, 2, "f", 16, 0.3, split, None) for split in ("train", "held_out"))
    assert not set(train.run_document) & set(held.run_document)
    assert set(train.run_document) | set(held.run_document) == set(range(100))
    assert 0 < len(set(held.run_document)) < 100


def test_a_pack_is_kept_on_disk_and_found_again(tmp_path: Path) -> None:
    made = corpus([[5, 30, 7, 7], [], [40]])
    first = packed(made.documents, 3, "f", 16, 0.1, "train", tmp_path)
    folders = list(tmp_path.iterdir())
    assert len(folders) == 1
    before = (folders[0] / "DONE").stat().st_mtime_ns
    again = packed(made.documents, 3, "f", 16, 0.1, "train", tmp_path)
    assert (folders[0] / "DONE").stat().st_mtime_ns == before
    for name in ("run_document", "run_start", "run_length", "sample_first_run", "sample_tokens", "source_tokens"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert np.array_equal(
            getattr(first, name), getattr(packed(made.documents, 3, "f", 16, 0.1, "train", None), name)
        )
    packed(made.documents, 3, "f", 17, 0.1, "train", tmp_path)
    packed(made.documents, 3, "g", 16, 0.1, "train", tmp_path)
    packed(made.documents, 3, "f", 16, 0.1, "held_out", tmp_path)
    packed(made.documents, 3, "f", 16, 0.1, "train", tmp_path, kind="padded")
    assert len(list(tmp_path.iterdir())) == 5


def test_a_flipped_byte_in_a_kept_pack_is_named(tmp_path: Path) -> None:
    made = corpus([[5, 30, 7, 7]])
    from sheaf import files

    packed(made.documents, 1, "f", 16, 0.0, "train", tmp_path)
    files._checked.clear()  # as in a new process: a file's digest is compared once in each
    path = next(tmp_path.glob("*/run_start.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="changed") as caught:
        packed(made.documents, 1, "f", 16, 0.0, "train", tmp_path)
    assert "run_start.npy" in caught.value.where
