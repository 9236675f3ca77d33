"""What is not to be predicted changes labels and the number that a loss is divided by, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from order_corpora import Corpus, corpus

from sheaf.errors import CorruptStore, DataRefused
from sheaf.order.gather import Gatherer
from sheaf.order.loader import Loader, micro
from sheaf.order.losses import predicted
from sheaf.order.order import Order


def losses_of(made: Corpus, seed: int = 0, files: tuple[int, ...] = (0,)) -> list[NDArray[np.uint8] | None]:
    rng = np.random.default_rng(seed)
    return [
        (rng.random(len(tokens)) < 0.3).astype(np.uint8) if number in files else None
        for number, tokens in enumerate(made.token_files)
    ]


def batches(made: Corpus, losses: Any, steps: int, **loader: Any) -> list[Any]:
    with Loader(made.order(losses=losses), made.token_files, stop=steps, prefetch=0, **loader) as loaded:
        return list(loaded)


def twin_labels(made: Corpus, order: Order, losses: Any, step: int) -> NDArray[np.int64]:
    """The labels of a step, in plain Python."""
    runs = order.runs(order.samples(step))
    labels = np.full((order.batch, order.sequence_length), -100, np.int64)
    at = [0] * order.batch
    for sample, document, start, length in zip(runs.sample, runs.document, runs.start, runs.length, strict=True):
        d = made.documents
        tokens, loss = made.token_files[d.shard[document]], losses[d.shard[document]]
        for j in range(int(length)):
            place = int(d.offset[document] + start + j + 1)
            if loss is None or loss[place]:
                labels[sample, at[sample]] = tokens[place]
            at[sample] += 1
    return labels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(0,), (1,), (0, 1)]))
def test_labels_are_minus_100_where_a_token_is_not_to_be_predicted(seed: int, files: tuple[int, ...]) -> None:
    made = corpus([[9, 40, 3, 17, 2] * 4, [5] * 9], shards=2, seed=seed, layout=seed)
    losses = losses_of(made, seed, files)
    order = made.order(losses=losses)
    for batch in batches(made, losses, 3):
        assert np.array_equal(batch.labels, twin_labels(made, order, losses, batch.step))
        assert batch.valid_tokens == int((batch.labels != -100).sum()) == order.valid_tokens(batch.step)
        assert batch.inputs == int((batch.document_ids >= 0).sum())


def test_everything_but_labels_and_their_number_is_as_without() -> None:
    made = corpus([[9, 40, 3, 17, 2] * 4, [5] * 9], shards=2)
    plain = batches(made, (), 4)
    for losses in ([None, None], losses_of(made)):
        for a, b in zip(plain, batches(made, losses, 4), strict=True):
            for name in ("input_ids", "position_ids", "document_ids", "samples"):
                assert np.array_equal(getattr(a, name), getattr(b, name))
            assert (a.inputs, a.digest) == (b.inputs, b.digest)
            assert np.array_equal(a.labels, b.labels) == all(x is None for x in losses)


def test_ranks_and_micro_batches_agree_on_the_number_of_predictions() -> None:
    made = corpus([[9, 40, 3, 17, 2] * 8], shards=2)
    losses = losses_of(made, files=(0, 1))
    for step, whole in enumerate(batches(made, losses, 4)):
        parts = [batches(made, losses, 4, rank=rank, world=3)[step] for rank in range(3)]
        assert {p.valid_tokens for p in parts} == {whole.valid_tokens}
        labels = [m.labels for p in parts for m in micro(p, 1)]
        assert sum(int((x != -100).sum()) for x in labels) == whole.valid_tokens


def test_documents_without_any_prediction_break_nothing() -> None:
    made = corpus([[12] * 20], shards=2)
    half = [np.zeros(len(made.token_files[0]), np.uint8), None]
    for batch in batches(made, half, 3):
        assert batch.valid_tokens == (batch.labels != -100).sum() < batch.inputs
    assert any(batch.valid_tokens for batch in batches(made, half, 3))


def test_a_corpus_that_predicts_nothing_is_refused() -> None:
    made = corpus([[12] * 20], shards=1)
    with pytest.raises(DataRefused, match="nothing to predict"):
        batches(made, [np.zeros(len(made.token_files[0]), np.uint8)], 3)


def test_a_kept_pack_counts_the_same_predictions(tmp_path: Any) -> None:
    made = corpus([[9, 40, 3] * 9], shards=2)
    losses = losses_of(made, files=(0, 1))
    fresh, made_now, found = (made.order(losses=losses, cache=c) for c in (None, tmp_path, tmp_path))
    assert np.array_equal(fresh.pack.sample_valid, made_now.pack.sample_valid)
    assert np.array_equal(fresh.pack.sample_valid, found.pack.sample_valid)
    assert fresh.pack.sample_valid.sum() < fresh.pack.sample_tokens.sum()


def test_predictions_of_runs_are_counted_as_by_hand() -> None:
    made = corpus([[9, 40, 3, 17] * 5], shards=2)
    losses = losses_of(made)
    order = made.order(losses=losses)
    runs = order.runs(order.samples(0))
    by_hand: list[int] = []
    for document, start, length in zip(runs.document, runs.start, runs.length, strict=True):
        first = int(made.documents.offset[document] + start + 1)
        loss = losses[made.documents.shard[document]]
        by_hand.append(int(length if loss is None else loss[first : first + int(length)].sum()))
    assert order.predictions(runs).tolist() == by_hand


def test_a_file_that_does_not_fit_its_tokens_is_refused_before_a_byte_is_read_beyond_it() -> None:
    made = corpus([[9] * 20], shards=1)
    short = [np.ones(len(made.token_files[0]) - 1, np.uint8)]
    with pytest.raises(CorruptStore, match="predicted"):
        Gatherer(replace(made.order(), losses=tuple(short)), made.token_files)
    with pytest.raises(CorruptStore, match="outside"):
        predicted(short, np.zeros(1, np.int32), np.zeros(1, np.int64), np.full(1, len(short[0]) + 1, np.int64))
