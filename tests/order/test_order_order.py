"""The order: seekable, exact in its counts, the same for every layout of files and every number of ranks."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_corpora import Corpus, corpora, corpus, recipes

from sheaf.errors import DataRefused, UsageError
from sheaf.order.balance import EmptyStep, imbalance, most_samples, split_by_cost
from sheaf.order.figures import step_figures
from sheaf.order.order import Order
from sheaf.order.trace import trace_step
from sheaf.recipe import Change, MixtureEntry, Packing


def uses(order: Order, steps: int) -> Counter[tuple[int, int]]:
    """How often each (source, index in its pack) was drawn."""
    drawn: Counter[tuple[int, int]] = Counter()
    for step in range(steps):
        samples = order.samples(step)
        drawn.update(zip(samples.source.tolist(), samples.index.tolist(), strict=True))
    return drawn


@settings(max_examples=60, deadline=None)
@given(made=corpora, data=st.data())
def test_in_every_epoch_of_a_source_each_of_its_samples_is_drawn_exactly_once(
    made: Corpus, data: st.DataObject
) -> None:
    order = made.order(mixture=data.draw(recipes(made)), batch=data.draw(st.integers(1, 9)))
    first, count = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 60))
    seen: Counter[tuple[int, int, int]] = Counter()
    for step in range(count):
        refs = order.samples(step)
        seen.update(zip(refs.source.tolist(), refs.epoch.tolist(), refs.index.tolist(), strict=True))
    assert max(seen.values()) == 1
    drawn = order.mixture.counts(count * order.batch)
    for source, n in enumerate(order.pack.source_samples.tolist()):
        epochs = Counter(epoch for s, epoch, _ in seen if s == source)
        assert (
            [epochs[e] for e in sorted(epochs)]
            == [n] * (drawn[source] // n) + [drawn[source] % n] * bool(drawn[source] % n)
            if n
            else not epochs
        )
    far = order.samples(first)
    assert (far.index < order.pack.source_samples[far.source]).all() and len(far) == order.batch


@settings(max_examples=40, deadline=None)
@given(made=corpora, epochs=st.integers(1, 3), batch=st.integers(1, 5))
def test_after_whole_epochs_every_document_was_used_exactly_so_often(made: Corpus, epochs: int, batch: int) -> None:
    caps = {name: MixtureEntry(max_epochs=epochs) for name in made.names}
    order = made.order(mixture=caps, batch=1)
    assert order.steps == epochs * len(order.pack.sample_tokens)
    drawn = uses(order, order.steps)
    assert set(drawn.values()) == {epochs} and len(drawn) == len(order.pack.sample_tokens)
    with pytest.raises(IndexError, match="lie outside"):
        order.samples(order.steps)
    if order.steps >= batch:
        assert made.order(mixture=caps, batch=batch).steps == order.steps // batch


def test_a_budget_of_epochs_counts_whole_steps() -> None:
    order = corpus([[9] * 50, [17] * 30]).order(batch=8)
    samples = len(order.pack.sample_tokens)
    assert order.steps is None
    assert order.steps_for(1) == -(-samples // 8)
    assert order.steps_for(2.5) == -(-samples * 5 // 16)
    assert set(uses(order, order.steps_for(1)).values()) <= {1, 2}
    assert len(uses(order, order.steps_for(1))) == samples


@settings(max_examples=30, deadline=None)
@given(data=st.data(), step=st.integers(0, 10**6), world=st.integers(1, 16))
def test_shards_and_file_layout_change_no_batch(data: st.DataObject, step: int, world: int) -> None:
    lengths = data.draw(st.lists(st.lists(st.integers(2, 40), max_size=20), min_size=1, max_size=3).filter(any))
    one, other = corpus(lengths, shards=1, layout=0), corpus(lengths, shards=3, layout=1)
    a, b = one.order(batch=16), other.order(batch=16)
    assert a.digest(step) == b.digest(step)
    assert a.valid_tokens(step) == b.valid_tokens(step)
    for x, y in zip(a.split_ranks(step, world), b.split_ranks(step, world), strict=True):
        assert np.array_equal(x, y)


def test_a_digest_is_of_the_set_and_of_all_that_is_in_it() -> None:
    made = corpus([[9] * 50, [30] * 30])
    order = made.order(batch=8)
    digests = [order.digest(step) for step in range(40)]
    assert len(set(digests)) == 40
    changed = corpus([[9] * 50, [30] * 30], seed=1).order(batch=8)
    assert changed.digest(0) != digests[0]
    assert made.order(batch=8, seed=6).digest(0) != digests[0]


def test_a_new_source_changes_no_other_source_s_shuffle() -> None:
    a = corpus([[9] * 50])
    refs = a.order(batch=1)
    alone = [int(refs.samples(step).index[0]) for step in range(40)]
    both = corpus([[9] * 50, [5] * 40]).order(batch=1)
    drawn = [both.samples(step) for step in range(200)]
    assert [int(r.index[0]) for r in drawn if r.source[0] == 0 and r.epoch[0] == 0][:20] == alone[:20]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), world=st.integers(1, 16))
def test_ranks_share_a_step_evenly_and_completely(data: st.DataObject, world: int) -> None:
    cost = np.array(data.draw(st.lists(st.integers(0, 10**12), min_size=world, max_size=100)), np.int64)
    parts = split_by_cost(cost, world)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(cost)))
    counts = [len(p) for p in parts]
    assert len(parts) == world and max(counts) - min(counts) <= 1
    assert all((np.diff(p) > 0).all() for p in parts)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), world=st.integers(1, 16))
def test_ranks_take_their_share_by_speed_rounded_down_or_up(data: st.DataObject, world: int) -> None:
    cost = np.array(data.draw(st.lists(st.integers(1, 10**12), min_size=1, max_size=100)), np.int64)
    speeds = tuple(data.draw(st.lists(st.floats(1e-3, 1e3), min_size=world, max_size=world)))
    parts = split_by_cost(cost, world, speeds)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(cost)))
    total = sum(map(Fraction, speeds))
    for part, speed, most in zip(parts, speeds, most_samples(len(cost), world, speeds), strict=True):
        share = len(cost) * Fraction(speed) / total
        assert abs(len(part) - share) < 1 and len(part) <= most == math.ceil(share)
    assert imbalance(cost, parts, speeds) >= 1 - 1e-9


def test_a_rank_twice_as_fast_gets_twice_the_work() -> None:
    cost = np.random.default_rng(0).lognormal(10, 0.5, 120).astype(np.int64)
    speeds = (1.0, 2.0, 1.0)
    work = [int(cost[part].sum()) for part in split_by_cost(cost, 3, speeds)]
    assert work[1] / work[0] == pytest.approx(2, rel=0.03) and work[2] / work[0] == pytest.approx(1, rel=0.03)
    assert imbalance(cost, split_by_cost(cost, 3, speeds), speeds) < 1.02
    assert imbalance(cost, split_by_cost(cost, 3), speeds) > 1.3


def test_the_slowest_rank_is_within_five_percent_of_the_least_possible_on_average() -> None:
    """The least possible is at least the mean over ranks and at least the dearest sample."""
    rng = np.random.default_rng(0)
    ours: list[float] = []
    naive: list[float] = []
    for _ in range(50):
        cost = rng.lognormal(10, 1, 64).astype(np.int64)
        least = max(cost.sum() / 8, cost.max())
        ours.append(max(cost[part].sum() for part in split_by_cost(cost, 8)) / least)
        naive.append(cost.reshape(8, 8).sum(axis=1).max() / least)
    assert np.mean(ours) < 1.05
    assert np.mean(naive) > 1.3


def test_too_small_a_batch_for_the_ranks_is_refused() -> None:
    order = corpus([[9] * 50]).order(batch=3)
    with pytest.raises(EmptyStep, match="3 samples cannot be split over 4 ranks"):
        order.split_ranks(0, 4)


@settings(max_examples=40, deadline=None)
@given(made=corpora, data=st.data())
def test_the_steps_that_used_a_document_are_those_in_which_it_is_found(made: Corpus, data: st.DataObject) -> None:
    split = data.draw(st.sampled_from(["train", "train", "held_out"]))
    mixture = data.draw(recipes(made)) if split == "train" else {}
    order = made.order(
        mixture=mixture, batch=data.draw(st.integers(1, 5)), held_out=0.0 if split == "train" else 0.4, split=split
    )
    steps = 40 if order.steps is None else order.steps
    wanted = data.draw(st.sets(st.integers(0, len(made.documents) - 1), max_size=5))
    found = [(u.document, u.step, u.slot, made.names[u.source], u.epoch) for u in order.steps_of(sorted(wanted), steps)]
    expected = [
        (document, step, sample.slot, sample.source, sample.epoch)
        for step in range(steps)
        for sample in trace_step(order, step)
        for document in sorted({run.document for run in sample.runs} & wanted)
    ]
    assert found == expected


def test_a_trace_gives_documents_ids_and_token_spans() -> None:
    made = corpus([[9] * 20, [40] * 10])
    order = made.order(batch=4)
    traced = trace_step(order, 3)
    assert [s.slot for s in traced] == [0, 1, 2, 3]
    assert sum(run.end - run.start for s in traced for run in s.runs) == order.valid_tokens(3)
    for run in (run for sample in traced for run in sample.runs):
        assert run.record == made.documents.id[run.document].tobytes().hex()
        assert 0 <= run.start < run.end <= made.documents.length[run.document] - 1
    for sample in traced:
        assert [r.position for r in sample.runs] == np.cumsum([0, *(r.end - r.start for r in sample.runs)])[
            :-1
        ].tolist()


def test_the_held_out_split_is_one_pass_in_order_with_all_sources_from_the_start() -> None:
    made = corpus([[9] * 300, [17] * 200])
    order = made.order(held_out=0.3, split="held_out", batch=7)
    samples = len(order.pack.sample_tokens)
    assert order.steps == -(-samples // 7) and samples % 7
    drawn = uses(order, order.steps)
    assert set(drawn.values()) == {1} and len(drawn) == samples
    assert len(order.samples(order.steps - 1)) == samples % 7
    first = order.samples(0)
    assert set(first.source.tolist()) == {0, 1}
    assert [(first.index[first.source == s] == np.arange((first.source == s).sum())).all() for s in (0, 1)] == [
        True
    ] * 2


def test_nothing_held_out_is_an_order_of_no_steps() -> None:
    assert corpus([[9] * 30]).order(held_out=0.0, split="held_out").steps == 0


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataRefused, match="nothing to train on"):
        corpus([[]]).order()
    with pytest.raises(DataRefused, match="too little data for one step"):
        corpus([[9] * 4]).order(batch=16, mixture={"source-0": MixtureEntry(max_epochs=1)})


def test_the_state_is_small_json_and_is_checked() -> None:
    made = corpus([[9] * 50])
    order = made.order()
    state = json.loads(json.dumps(order.state(10_000_000)))
    assert order.check(state) == 10_000_000
    assert len(json.dumps(state)) < 400
    for change in (
        {"batch": 8},
        {"seed": 6},
        {"sequence_length": 32},
        {"packing": "padded"},
        {"mixture": {"source-0": MixtureEntry(weight=2)}},
        {"curriculum": (Change(at=9, weights={"source-0": 2.0}),)},
    ):
        with pytest.raises(UsageError, match="another order") as caught:
            made.order(**change).check(state)
        assert caught.value.where == next(iter(change))
    with pytest.raises(UsageError, match="fingerprint was 'a fingerprint', is 'of other texts'") as caught:
        replace(order, fingerprint="of other texts").check(state)  # a corpus of the same sizes
    assert caught.value.where == "fingerprint"
    for step in (-1, True, "7", None):
        with pytest.raises(UsageError):
            order.check({**state, "step": step})
    drawn = {**state, "sources": {"source-0": [state["sources"]["source-0"][0], 3]}}
    with pytest.raises(UsageError, match="another order") as caught:  # as of a version that would draw otherwise
        order.check(drawn)
    assert caught.value.where == "sources"


@pytest.mark.parametrize("packing", ["best-fit", "concatenate", "padded"])
def test_the_figures_of_a_step_add_up(packing: Packing) -> None:
    made = corpus([[40, 9, 20] * 40, [17] * 80])
    curriculum = (Change(at=3, weights={"source-1": 2}),)
    order = made.order(mixture={"source-0": MixtureEntry()}, curriculum=curriculum, batch=8, packing=packing)
    for step in range(5):
        figures = step_figures(order, step, 3)
        samples = trace_step(order, step)
        held = Counter[str]()
        for sample in samples:
            held[sample.source] += sum(run.end - run.start for run in sample.runs)
        assert figures.source_tokens == held
        rows = [max(r.end - r.start for r in s.runs) * len(s.runs) if packing == "padded" else 16 for s in samples]
        assert figures.efficiency == pytest.approx(sum(held.values()) / sum(rows))
        assert 1 <= figures.balance < 2
        assert figures.weights == {
            0: {"source-0": 0.5, "source-1": 0.5},
            3: {"source-0": 1 / 3, "source-1": 2 / 3},
        }.get(step)
