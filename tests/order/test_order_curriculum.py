"""Weights that change at a step: what came before stays, epochs and caps go on, and shares hold at every prefix."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from order_corpora import Corpus, corpora, corpus, curricula, recipes

from sheaf.errors import DataRefused, RecipeError, UsageError
from sheaf.order.mix import ENDLESS, Mixture, resolve_mixture
from sheaf.recipe import Change, MixtureEntry

WEIGHTS = st.one_of(st.floats(0.01, 100), st.sampled_from([0.0, 1.0, 2.0, 1e-12, 1e-300, 1e12, 1e300]))


@st.composite
def changing(draw: st.DrawFn, capped: bool | None = None) -> Mixture:
    count = draw(st.integers(1, 5))
    shares = st.lists(WEIGHTS, min_size=count, max_size=count).filter(any).map(np.array)
    samples = np.array(draw(st.lists(st.integers(1, 40), min_size=count, max_size=count)))
    mean = np.array(draw(st.lists(st.integers(1, 2000), min_size=count, max_size=count)))
    ends = draw(st.booleans()) if capped is None else capped
    caps = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count)) if ends else [ENDLESS] * count
    lengths = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    changes = tuple((int(slot), draw(shares)) for slot in np.cumsum(lengths))
    return Mixture(draw(shares), samples * mean, samples, np.array(caps), changes)


def in_exact_numbers(mixture: Mixture) -> list[tuple[int, list[Fraction]]]:
    """First slot and shares, summing to 1, of each stretch."""
    stretches = [(0, mixture.share_s), *mixture.changes]
    exact = [(slot, [Fraction(float(q)) for q in share_s]) for slot, share_s in stretches]
    return [(slot, [q / sum(share) for q in share]) for slot, share in exact]


@settings(max_examples=150, deadline=None)
@given(mixture=changing(), cuts=st.lists(st.integers(0, 300), min_size=3, max_size=3).map(sorted))
def test_any_cut_of_a_range_gives_the_same_draws_and_each_draw_of_a_source_comes_once_in_turn(
    mixture: Mixture, cuts: list[int]
) -> None:
    a, b, c = (cut if mixture.total is None else min(cut, mixture.total) for cut in cuts)
    whole = mixture.draws(a, c)
    for one, left, right in zip(whole, mixture.draws(a, b), mixture.draws(b, c), strict=True):
        assert np.array_equal(one, np.concatenate([left, right]))
    assert np.array_equal(mixture.slots(*whole), np.arange(a, c))
    low, high = mixture.counts(a), mixture.counts(c)
    assert low.sum() == a and high.sum() == c
    for source in range(len(low)):
        assert np.array_equal(whole[1][whole[0] == source], np.arange(low[source], high[source]))
        assert mixture.max_draws_s[source] == ENDLESS or high[source] <= mixture.max_draws_s[source]
    for slot, share_s in [(0, mixture.share_s), *mixture.changes]:  # who has no weight is not drawn
        end = min([s for s, _ in mixture.changes if s > slot], default=c)
        here = whole[0][max(slot - a, 0) : max(end - a, 0)]
        assert (share_s[here] > 0).all()


@settings(max_examples=150, deadline=None)
@given(mixture=changing(capped=False), slot=st.one_of(st.integers(1, 300), st.integers(1, 10**9)))
def test_every_prefix_holds_the_shares_of_its_stretches_within_the_stated_bound(mixture: Mixture, slot: int) -> None:
    """The bound in the docstring of `mix`, in exact arithmetic."""
    stretches = [(first, q) for first, q in in_exact_numbers(mixture) if first < slot]
    m_s = [Fraction(int(t), int(n)) for t, n in zip(mixture.tokens_s, mixture.samples_s, strict=True)]
    ends = [*(first for first, _ in stretches[1:]), slot]
    count_ps = [mixture.counts(end).tolist() for end in ends]
    tokens_p = [sum(c * m for c, m in zip(count_s, m_s, strict=True)) for count_s in count_ps]
    tokens_p = [later - before for later, before in zip(tokens_p, [0, *tokens_p], strict=False)]
    asked_s = mixture.asked_tokens(slot)
    for s, m in enumerate(m_s):
        asked = sum(q[s] * w for (_, q), w in zip(stretches, tokens_p, strict=True))
        last = stretches[-1][1][s]
        moved = sum(abs(q[s] - r[s]) for (_, q), (_, r) in itertools.pairwise(stretches))
        bound = (m * (1 - last) + last * (sum(m_s) - m)) / 2 + moved * sum(m_s) / 2
        rounding = sum(tokens_p) * Fraction(1, 2**45) + Fraction(1, 2**30)
        assert abs(count_ps[-1][s] * m - asked) <= bound + rounding
        assert asked_s[s] == pytest.approx(float(asked), rel=1e-9, abs=1e-6)


def test_a_change_to_the_same_weights_changes_nothing() -> None:
    sizes = np.array([640] * 3), np.array([10] * 3), np.array([ENDLESS] * 3)
    weights = np.array([4.0, 2.0, 1.0])  # powers of two: all due times are exact
    plain = Mixture(weights, *sizes)
    changed = Mixture(weights, *sizes, tuple((slot, 8 * weights) for slot in (1, 2, 3, 50, 51, 777)))
    for one, other in zip(plain.draws(0, 2000), changed.draws(0, 2000), strict=True):
        assert np.array_equal(one, other)


def test_a_source_of_little_weight_is_not_forgotten_however_often_the_weights_change() -> None:
    sizes = np.array([1000] * 2), np.array([10] * 2), np.array([ENDLESS] * 2)
    up_and_down = tuple((20 * i, np.array([100.0 + i % 2, 1.0])) for i in range(1, 200))
    drawn = Mixture(np.array([100.0, 1.0]), *sizes, up_and_down).counts(20 * 200)
    assert abs(drawn[1] - 4000 / 101.5) <= 1


def test_a_spent_source_stays_spent_and_the_order_ends_where_nothing_with_a_weight_is_left() -> None:
    sizes = np.array([1000] * 3), np.array([10] * 3), np.array([15, 30, ENDLESS])
    back = Mixture(np.array([1.0, 1.0, 0]), *sizes, ((40, np.array([5.0, 0, 1.0])),))
    assert back.counts(1000).tolist() == [15, 25, 960] and back.total is None
    late = Mixture(np.array([1.0, 1.0, 0]), *sizes, ((46, np.array([0, 0, 1.0])),))
    assert late.total == 45  # before the third source has its weight
    just = Mixture(np.array([1.0, 1.0, 0]), *sizes, ((45, np.array([0, 0, 1.0])),))
    assert just.total is None and just.counts(50).tolist() == [15, 30, 5]


@settings(max_examples=30, deadline=None)
@given(made=corpora, data=st.data())
def test_steps_before_a_change_are_those_of_an_order_without_it(made: Corpus, data: st.DataObject) -> None:
    mixture = {name: MixtureEntry() for name in made.names} | data.draw(recipes(made))
    curriculum = data.draw(curricula(made))
    at, batch = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 6))
    before = tuple(c for c in curriculum if c.at < at)
    later = (*before, Change(at=at, weights={name: 7.0 for name in made.names}))
    whole, part = (made.order(mixture=mixture, curriculum=c, batch=batch) for c in (later, before))
    assert [whole.digest(step) for step in range(at)] == [part.digest(step) for step in range(at)]
    assert whole.check(part.state(at)) == at  # the change begins where the state ends
    assert part.check(whole.state(at)) == at
    with pytest.raises(UsageError, match="another order") as caught:
        part.check(whole.state(at + 1))
    assert "curriculum" in caught.value.where


def test_of_two_changes_at_one_step_the_later_counts_and_an_unnamed_source_keeps_its_weight() -> None:
    names, sizes = ["a", "b"], (np.array([100, 100]), np.array([10, 10]))
    changes = [Change(at=5, weights={"a": 3}), Change(at=5, weights={"a": 7}), Change(at=9, weights={"b": 2})]
    mixture = resolve_mixture(names, {"a": MixtureEntry(weight=2)}, *sizes, changes, batch=4)
    assert mixture.share_s.tolist() == [2, 1]
    assert [(slot, share.tolist()) for slot, share in mixture.changes] == [(20, [7, 1]), (36, [7, 2])]
    first = resolve_mixture(names, {"a": MixtureEntry(weight=2)}, *sizes, [Change(at=0, weights={"a": 3})], batch=4)
    assert first.share_s.tolist() == [3, 1] and not first.changes


@pytest.mark.parametrize(
    ("mixture", "changes", "error", "said"),
    [
        ({}, [(3, {"a": 1})], RecipeError, "says nothing of 'b'"),
        ({"a": 1}, [(3, {"ab": 1})], RecipeError, "does not exist: 'ab'"),
        ({"a": 1}, [(3, {"a": 0, "b": 0})], DataRefused, "from step 3 on"),
        ({"a": 1}, [(3, {"a": 2}), (2, {"a": 1})], RecipeError, "step 2 stands behind that at step 3"),
        ({"a": 1}, [("50%", {"a": 2})], RecipeError, "50% has no step"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused(
    mixture: dict[str, float], changes: list[tuple[int | str, dict[str, float]]], error: type[Exception], said: str
) -> None:
    entries = {name: MixtureEntry(weight=weight) for name, weight in mixture.items()}
    curriculum = [Change(at=at, weights=weights) for at, weights in changes]
    with pytest.raises(error, match=said):
        resolve_mixture(["a", "b"], entries, np.array([9, 9]), np.array([1, 1]), curriculum, 4)


def test_without_a_mixture_a_first_change_of_all_weights_ends_the_shares_by_size() -> None:
    order = corpus([[17] * 300, [17] * 100]).order(
        batch=8, curriculum=(Change(at=10, weights=dict.fromkeys(("source-0", "source-1"), 1)),)
    )
    assert order.weights(9) == {"source-0": 0.75, "source-1": 0.25} and set(order.weights(10).values()) == {0.5}
