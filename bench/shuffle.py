"""Shuffle: how far the keyed bijection is from a true random permutation, beside numpy's own; and what it costs.

For each size, over some keys, statistics whose law under a random permutation is known, as standard deviations from
their mean (a fair shuffle stays within 3 or so), for Sheaf's shuffle and for numpy's, which is one:

- neighbours: pairs (i, i + 1) that stay adjacent, in either order (Poisson, mean 2 a permutation)
- gap: mean distance between the places of neighbours, |p(i + 1) - p(i)| (mean (n + 1) / 3)
- displacement: mean |p(i) - i| (mean (n² - 1) / 3n), and its whole law by the Kolmogorov-Smirnov distance, in units of
  what 1 permutation in 1,000 exceeds
- order: correlation of position and place (mean 0); rises: pairs with p(i + 1) > p(i) (mean (n - 1) / 2)
- epochs: positions that two keys agree on (Poisson, mean 1 a pair)

Use: python bench/shuffle.py [--keys 200]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np

from sheaf.order.shuffle import permute, shuffle_key

SIZES = (100, 1_009, 10_000, 2**16)
KOLMOGOROV = 1.949  # the limit law exceeds it once in 1,000


def figures(permutation: Callable[[int], np.ndarray], n: int, keys: int) -> dict[str, float]:
    """Standard deviations from the mean of a random permutation, by statistic; the last is a ratio."""
    index = np.arange(n)
    neighbours = gap = moved = correlation = rises = same = 0.0
    law = np.zeros(n)
    before = permutation(-1)
    for key in range(keys):
        p = permutation(key)
        step, distance = np.diff(p), np.abs(p - index)
        neighbours += (np.abs(step) == 1).sum()
        gap += np.abs(step).mean()
        moved += distance.mean()
        correlation += np.corrcoef(index, p)[0, 1]
        rises += (step > 0).sum()
        same += (p == before).sum()
        law += np.bincount(distance, minlength=n)
        before = p
    exact = np.append(n, 2 * (n - np.arange(1, n))) / n**2  # of |p(i) - i| over all i
    kolmogorov = np.abs(np.cumsum(law / law.sum()) - np.cumsum(exact)).max() * np.sqrt(keys * n)
    root = np.sqrt(keys)
    return {
        "neighbours": (neighbours - 2 * keys * (n - 1) / n) / np.sqrt(2 * keys),
        "gap": (gap / keys - (n + 1) / 3) / (n * np.sqrt(2 / 45 / n) / root),
        "displacement": (moved / keys - (n**2 - 1) / 3 / n) / (n * np.sqrt(2 / 45 / n) / root),
        "order": correlation / keys * np.sqrt(n - 1) * root,
        "rises": (rises - keys * (n - 1) / 2) / np.sqrt(keys * (n + 1) / 12),
        "epochs": (same - keys) / root,
        "law": kolmogorov / KOLMOGOROV,
    }


def ours(n: int) -> Callable[[int], np.ndarray]:
    return lambda key: permute(np.arange(n), n, shuffle_key(7, "wiki", key + 1))


def numpys(n: int) -> Callable[[int], np.ndarray]:
    return lambda key: np.random.default_rng(key + 2**32).permutation(n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=200)
    keys = parser.parse_args().keys
    print(f"python {platform.python_version()}, numpy {np.__version__}; {keys} keys; standard deviations, law: ratio")
    for n in SIZES:
        for name, permutation in (("sheaf", ours(n)), ("numpy", numpys(n))):
            told = "  ".join(f"{what} {value:+.1f}" for what, value in figures(permutation, n, keys).items())
            print(f"{n:>6} {name}  {told}")
    index = np.arange(1_000_000)
    for n in (10**6, 10**10, 2**62):
        permute(index, n, 1)
        begin = time.process_time()
        permute(index, n, 1)
        print(f"an index of {n:>19,}: {(time.process_time() - begin) * 1e3:.0f} ns of processor time, no memory")


if __name__ == "__main__":
    main()
