"""The mixture: the same as a plain merge, the same for every cut into ranges, and never far from its shares."""

from __future__ import annotations

import heapq
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sheaf.errors import DataRefused, RecipeError
from sheaf.order.mix import ENDLESS, LARGEST_DRAW, Mixture, resolve_mixture
from sheaf.recipe import MixtureEntry

WEIGHTS = st.one_of(
    st.floats(0.01, 100),
    st.sampled_from([0.0, 1.0, 1.0, 2.0, 1e-12, 1e-300, 1e12, 1e300]),
    st.integers(1, 5).map(float),
)


@st.composite
def mixtures(draw: st.DrawFn, capped: bool | None = None) -> Mixture:
    count = draw(st.integers(1, 6))
    share = draw(st.lists(WEIGHTS, min_size=count, max_size=count).filter(any))
    samples = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    mean = draw(st.lists(st.integers(1, 2000), min_size=count, max_size=count))
    ends = draw(st.booleans()) if capped is None else capped
    caps = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count)) if ends else [ENDLESS] * count
    tokens = [n * m for n, m in zip(samples, mean, strict=True)]
    return Mixture(np.array(share), np.array(tokens), np.array(samples), np.array(caps))


def merged(mixture: Mixture, slots: int) -> list[tuple[int, int]]:
    """The twin: a heap of the next due time of every source."""
    share = mixture.share_s / mixture.share_s.max() * (mixture.samples_s / mixture.tokens_s)
    rate = np.maximum(share / share.max(), 1e-200)
    heap = [(0.5 / float(rate[s]), s, 0) for s in range(len(rate)) if mixture.share_s[s] > 0]
    heapq.heapify(heap)
    out: list[tuple[int, int]] = []
    while heap and len(out) < slots:
        _, s, k = heapq.heappop(heap)
        out.append((s, k))
        if mixture.max_draws_s[s] == ENDLESS or k + 1 < mixture.max_draws_s[s]:
            heapq.heappush(heap, ((k + 1 + 0.5) / float(rate[s]), s, k + 1))
    return out


@settings(max_examples=200, deadline=None)
@given(mixture=mixtures(), slots=st.integers(0, 300))
@example(mixture=Mixture(np.array([1.0, 1e-300, 1e300]), *[np.ones(3, np.int64)] * 3), slots=3)
def test_the_draws_are_those_of_a_plain_merge_by_due_time(mixture: Mixture, slots: int) -> None:
    end = slots if mixture.total is None else min(slots, mixture.total)
    source, draw = mixture.draws(0, end)
    assert list(zip(source.tolist(), draw.tolist(), strict=True)) == merged(mixture, end)
    if mixture.total is not None:
        assert len(merged(mixture, 10_000)) == mixture.total


@settings(max_examples=200, deadline=None)
@given(mixture=mixtures(), base=st.integers(0, 2**50), steps=st.lists(st.integers(0, 60), min_size=2, max_size=2))
def test_any_cut_of_a_range_gives_the_same_draws(mixture: Mixture, base: int, steps: list[int]) -> None:
    a = base if mixture.total is None else base % (mixture.total + 1)
    end = a + sum(steps) if mixture.total is None else min(a + sum(steps), mixture.total)
    b = min(a + steps[0], end)
    whole = mixture.draws(a, end)
    for one, left, right in zip(whole, mixture.draws(a, b), mixture.draws(b, end), strict=True):
        assert np.array_equal(one, np.concatenate([left, right]))
    assert np.array_equal(mixture.slots(*whole), np.arange(a, end))
    assert np.array_equal(
        mixture.counts(end) - mixture.counts(a), np.bincount(whole[0], minlength=len(mixture.share_s))
    )


@settings(max_examples=200, deadline=None)
@given(mixture=mixtures(capped=False), slot=st.one_of(st.integers(1, 2000), st.integers(1, 10**9)))
def test_every_prefix_holds_the_shares_within_half_a_sample_of_each_source(mixture: Mixture, slot: int) -> None:
    """The bound of the docstring, in exact arithmetic; a source slower than 1e-200 is a matter of no prefix."""
    counts = mixture.counts(slot)
    total_share = sum((Fraction(float(q)) for q in mixture.share_s), Fraction(0))
    q_s = [Fraction(float(q)) / total_share for q in mixture.share_s]
    m_s = [Fraction(int(t), int(n)) for t, n in zip(mixture.tokens_s, mixture.samples_s, strict=True)]
    drawn = [s for s in range(len(q_s)) if q_s[s] > 0]
    tokens = sum(int(counts[s]) * m_s[s] for s in drawn)
    for s in drawn:
        others = sum((m_s[j] for j in drawn if j != s), Fraction(0))
        bound = (m_s[s] * (1 - q_s[s]) + q_s[s] * others) / 2
        rounding = tokens * Fraction(1, 2**45)
        assert abs(int(counts[s]) * m_s[s] - q_s[s] * tokens) <= bound + rounding
    assert all(counts[s] == 0 for s in range(len(q_s)) if s not in drawn)


def test_a_spent_source_leaves_the_others_in_proportion() -> None:
    mixture = Mixture(
        np.array([1.0, 1.0, 2.0]), np.array([100] * 3), np.array([10] * 3), np.array([5, ENDLESS, ENDLESS])
    )
    source, _ = mixture.draws(0, 3020)
    assert (source == 0).sum() == 5
    tail = source[20:]
    assert abs((tail == 2).sum() - 2000) <= 1 and not (tail == 0).any()


def test_ends_are_named() -> None:
    mixture = Mixture(np.array([1.0]), np.array([10]), np.array([2]), np.array([4]))
    assert mixture.total == 4
    with pytest.raises(IndexError, match="4 slots"):
        mixture.draws(3, 5)
    endless = Mixture(np.array([1.0]), np.array([10]), np.array([2]), np.array([ENDLESS]))
    assert endless.draws(LARGEST_DRAW - 2, LARGEST_DRAW)[1].tolist() == [LARGEST_DRAW - 2, LARGEST_DRAW - 1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 999)), min_size=1, max_size=8).filter(
        lambda x: any(n for n, _ in x)
    )
)
def test_without_a_mixture_all_sources_finish_an_epoch_together(sizes: list[tuple[int, int]]) -> None:
    samples = np.array([n for n, _ in sizes])
    tokens = samples * np.array([m for _, m in sizes])
    mixture = resolve_mixture([f"s{i}" for i in range(len(sizes))], {}, tokens, samples)
    for epoch in (1, 2, 7, 1000):
        assert np.array_equal(mixture.counts(epoch * int(samples.sum())), epoch * samples)


def test_the_recipe_says_shares_caps_and_who_takes_part() -> None:
    names, tokens, samples = ["a", "b", "empty"], np.array([1000, 90, 0]), np.array([100, 3, 0])
    mixture = resolve_mixture(names, {"a": MixtureEntry(weight=3, max_epochs=0.07)}, tokens, samples)
    assert mixture.share_s.tolist() == [3, 1, 0]
    assert mixture.max_draws_s.tolist()[:2] == [7, ENDLESS]
    assert mixture.total is None
    only = resolve_mixture(names, {"a": MixtureEntry(max_epochs=1.5), "b": MixtureEntry(weight=0)}, tokens, samples)
    assert only.total == 150
    assert set(only.draws(0, 150)[0].tolist()) == {0}
    assert math.isclose(only.share_s[0], 1)


def test_a_wrong_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="'wikki'") as caught:
        resolve_mixture(["wiki", "mail"], {"wikki": MixtureEntry()}, np.array([9, 9]), np.array([1, 1]))
    assert "'wiki'" in caught.value.fix


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(DataRefused):
        resolve_mixture(["a", "b"], {"a": MixtureEntry(weight=0)}, np.array([9, 0]), np.array([1, 0]))
