"""Copies of items within a source and between two, estimated from a sample that holds all items of a size or none.

Two items are copies if size and digest of their ends agree. An item whose size nobody else has needs no look at all; so
the listing alone settles most, and the sample the rest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sheaf.scan.estimate import Estimate, share
from sheaf.sources.base import Item

Digests = Mapping[str, str]  # an item's path → digest of its ends


def within(items: Sequence[Item], known: Digests) -> Estimate:
    """The share of a source's items that repeat another item of it. Empty items are no copies of each other."""
    of_size = Counter(item.size for item in items if item.size > 0)
    hits: dict[int, int] = defaultdict(int)
    looked: dict[int, int] = defaultdict(int)
    seen: set[tuple[int, str]] = set()
    for item in items:
        if item.size <= 0 or (of_size[item.size] > 1 and item.path not in known):
            continue
        looked[item.size] += 1
        if of_size[item.size] > 1:
            key = (item.size, known[item.path])
            hits[item.size] += key in seen
            seen.add(key)
    return _share(hits, looked, sum(of_size.values()))


def between(one: Sequence[Item], other: Sequence[Item], known_one: Digests, known_other: Digests) -> Estimate:
    """The share of the first source's items that the second one has too."""
    sizes = Counter(item.size for item in other if item.size > 0)
    sampled: dict[int, set[str]] = defaultdict(set)
    whole = Counter[int]()
    for item in other:
        if item.path in known_other:
            sampled[item.size].add(known_other[item.path])
            whole[item.size] += 1
    hits: dict[int, int] = defaultdict(int)
    looked: dict[int, int] = defaultdict(int)
    population = 0
    for item in one:
        if item.size <= 0:
            continue
        population += 1
        if item.size not in sizes:
            looked[item.size] += 1
        elif item.path in known_one and whole[item.size] == sizes[item.size]:
            looked[item.size] += 1
            hits[item.size] += known_one[item.path] in sampled[item.size]
    return _share(hits, looked, population)


def _share(hits: dict[int, int], looked: dict[int, int], population: int) -> Estimate:
    sizes = list(looked)
    left_out = 1 - sum(looked.values()) / population if population else 0.0
    return share([hits[s] for s in sizes], [looked[s] for s in sizes], left_out)


def shared_records(ids: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Pairs of sources whose sampled records have ids in common, most first: {"sources", "records", "of"}."""
    sets = {name: set(found) for name, found in ids.items()}
    pairs = [
        {"sources": [a, b], "records": len(sets[a] & sets[b]), "of": min(len(sets[a]), len(sets[b]))}
        for i, a in enumerate(sets)
        for b in list(sets)[i + 1 :]
    ]
    return sorted((p for p in pairs if p["records"]), key=lambda p: -p["records"])
