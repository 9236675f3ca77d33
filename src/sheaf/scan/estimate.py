"""From a sample to the whole, with the error: ratio estimates by stratum, and shares by cluster.

A total is estimated as Σ over strata of (bytes of the stratum × amount per byte of its sample), its variance by
linearising the ratio (Cochran, Sampling Techniques, 3rd ed., sections 6.4 and 6.11). A share of items whose sample was
drawn by clusters has the variance of a ratio of cluster totals (section 9A.2). Errors are two standard errors: 95 of
100 surveys of such data come so near. Where a stratum was seen as a whole its error is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    error: float  # two standard errors

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, math.hypot(self.error, other.error))

    def as_json(self) -> dict[str, int]:
        return {"value": round(self.value), "error": math.ceil(self.error)}


NOTHING = Estimate(0.0, 0.0)


def total(
    amounts: Sequence[float], seen: Sequence[float], sizes: Sequence[float], items: int, whole: float
) -> Estimate:
    """The amount in a stratum of `items` items with `whole` bytes.

    amounts: what each sampled item gave; seen: bytes of it that were read for that; sizes: its bytes. An item that was
    read in part counts as if the rest were alike.
    """
    n, sampled = len(amounts), sum(sizes)
    if n == 0 or sampled == 0:
        return NOTHING
    scaled = [a * size / s if s else 0.0 for a, s, size in zip(amounts, seen, sizes, strict=True)]
    ratio = sum(scaled) / sampled
    value = ratio * whole
    everything = n == items and all(s >= size for s, size in zip(seen, sizes, strict=True))
    if everything or n == 1:
        return Estimate(value, 0.0 if everything else value)
    residual = sum((y - ratio * x) ** 2 for y, x in zip(scaled, sizes, strict=True)) / (n - 1)
    left_out = max(0.0, 1 - sampled / whole) if whole else 0.0
    return Estimate(value, 2 * items * math.sqrt(left_out * residual / n))


def share(hits: Sequence[int], of: Sequence[int], left_out: float) -> Estimate:
    """The share Σ hits / Σ of, from clusters. left_out: share of the population that was not looked at."""
    clusters, size = len(of), sum(of)
    if size == 0:
        return NOTHING
    p = sum(hits) / size
    if left_out <= 0:
        return Estimate(p, 0.0)
    if clusters < 2:
        return Estimate(p, 1.0)
    residual = sum((h - p * n) ** 2 for h, n in zip(hits, of, strict=True)) * clusters / (clusters - 1)
    spread = 2 * math.sqrt(left_out * residual) / size
    return Estimate(p, max(spread, 3 / size))  # "rule of three": nothing found in n is still up to 3/n
