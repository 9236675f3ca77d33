"""The keyed shuffle is a bijection, can be turned round, and looks like a true random permutation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.order.shuffle import LARGEST, permute, shuffle_key, unpermute

KEYS = [shuffle_key(seed, "wiki", 0) for seed in range(40)]


def test_every_small_size_is_permuted_to_itself() -> None:
    for n in range(1, 301):
        everything = np.arange(n)
        for key in KEYS[:3]:
            there = permute(everything, n, key)
            assert np.array_equal(np.sort(there), everything)
            assert np.array_equal(unpermute(there, n, key), everything)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, LARGEST), key=st.integers(0, 2**64 - 1), data=st.data())
def test_any_size_up_to_two_to_the_62_can_be_turned_round(n: int, key: int, data: st.DataObject) -> None:
    index = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=50))), np.int64)
    there = permute(index, n, key)
    assert there.min() >= 0 and there.max() < n
    assert len(np.unique(there)) == len(index)
    assert np.array_equal(unpermute(there, n, key), index)
    assert np.array_equal(permute(there, n, key), permute(permute(index, n, key), n, key))


@pytest.mark.parametrize("n", [100_003, 2**17, 999_999])
def test_a_large_size_is_a_bijection(n: int) -> None:
    seen = np.zeros(n, bool)
    seen[permute(np.arange(n), n, KEYS[0])] = True
    assert seen.all()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_all_permutations_of_few_things_are_equally_likely(n: int) -> None:
    """Chi-square over all n! outcomes, within 5 standard deviations (and a little for the skew of few outcomes)."""
    trials, possible = 60_000, math.factorial(n)
    codes = np.array([permute(np.arange(n), n, key) @ (n ** np.arange(n)) for key in range(trials)])
    _, counts = np.unique(codes, return_counts=True)
    expected, freedom = trials / possible, possible - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum()) + (possible - len(counts)) * expected
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 12


@pytest.mark.parametrize("n", [1_000, 20_011, 2**16])
def test_neighbours_and_displacements_are_those_of_a_random_permutation(n: int) -> None:
    """Over 40 keys, each within 5 standard deviations of a true random permutation: pairs left adjacent (mean 2 a
    permutation), fixed points (mean 1), displacement (mean n/3) and its law, distance between the places of neighbours
    (mean (n + 1)/3), correlation of position and place (0)."""
    shuffled = [permute(np.arange(n), n, key) for key in KEYS]
    adjacent = sum(int((np.abs(np.diff(p)) == 1).sum()) for p in shuffled)
    assert abs(adjacent - 2 * len(KEYS)) < 5 * np.sqrt(2 * len(KEYS))
    fixed = sum(int((p == np.arange(n)).sum()) for p in shuffled)
    assert abs(fixed - len(KEYS)) < 5 * np.sqrt(len(KEYS))
    displacement = np.mean([np.abs(p - np.arange(n)).mean() for p in shuffled]) / n
    # |i − π(i)|/n has mean 1/3; the mean over a permutation has a standard deviation of about sqrt(2/45 / n).
    assert abs(displacement - 1 / 3) < 5 * np.sqrt(2 / 45 / n / len(KEYS)) + 1 / n
    gap = np.mean([np.abs(np.diff(p)).mean() for p in shuffled]) / n
    assert abs(gap - (n + 1) / 3 / n) < 5 * np.sqrt(1 / 18 / n / len(KEYS))
    # The whole law of |i − π(i)|, by its Kolmogorov distance: random permutations exceed the bound once in a million.
    found = np.cumsum(sum(np.bincount(np.abs(p - np.arange(n)), minlength=n) for p in shuffled)) / n / len(KEYS)
    law = np.cumsum(np.append(n, 2 * (n - np.arange(1, n)))) / n**2
    assert np.abs(found - law).max() < 2.7 / np.sqrt(n * len(KEYS))
    correlation = np.mean([np.corrcoef(np.arange(n), p)[0, 1] for p in shuffled])
    assert abs(correlation) < 5 / np.sqrt(n * len(KEYS))


def test_two_epochs_have_nothing_to_do_with_each_other() -> None:
    n = 50_000
    first, second = (permute(np.arange(n), n, shuffle_key(7, "wiki", epoch)) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(n)
    assert (first == second).sum() < 10  # Poisson with mean 1


def test_the_key_depends_on_seed_name_and_epoch_and_on_nothing_else() -> None:
    keys = {shuffle_key(*what) for what in itertools.product((0, 1, 12), ("a", "b", "ab", "1:a"), (0, 1, 2))}
    assert len(keys) == 36
    assert shuffle_key(7, "wiki", 3) == 0xCC3B67E768E03A76  # on every machine, for ever


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5]), 5, 0)
    with pytest.raises(ValueError, match=r"2\^62"):
        permute(np.array([0]), 2**62 + 1, 0)
