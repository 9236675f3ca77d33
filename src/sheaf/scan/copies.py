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
    doubtful = _Doubtful(sum(of_size.values()))
    seen: set[tuple[int, str]] = set()
    for item in items:
        if item.size <= 0 or of_size[item.size] == 1:
            continue
        digest = known.get(item.path)
        doubtful.add(item.size, None if digest is None else (item.size, digest) in seen)
        if digest is not None:
            seen.add((item.size, digest))
    return doubtful.share()


def between(one: Sequence[Item], other: Sequence[Item], known_one: Digests, known_other: Digests) -> Estimate:
    """The share of the first source's items that the second one has too."""
    sizes = Counter(item.size for item in other if item.size > 0)
    sampled: dict[int, set[str]] = defaultdict(set)
    whole = Counter[int]()
    for item in other:
        if item.path in known_other:
            sampled[item.size].add(known_other[item.path])
            whole[item.size] += 1
    doubtful = _Doubtful(sum(item.size > 0 for item in one))
    for item in one:
        if item.size in sizes:
            digest = known_one.get(item.path) if whole[item.size] == sizes[item.size] else None
            doubtful.add(item.size, None if digest is None else digest in sampled[item.size])
    return doubtful.share()


class _Doubtful:
    """The items whose size leaves it open, by size; of all others it is known that they are no copies."""

    def __init__(self, population: int) -> None:
        self._population = population
        self._open = 0
        self._hits: dict[int, int] = defaultdict(int)
        self._looked: dict[int, int] = defaultdict(int)

    def add(self, size: int, copy: bool | None) -> None:
        """copy: None if nobody looked."""
        self._open += 1
        if copy is not None:
            self._looked[size] += 1
            self._hits[size] += copy

    def share(self) -> Estimate:
        if not self._open:
            return Estimate(0.0, 0.0)
        sizes = list(self._looked)
        looked = [self._looked[s] for s in sizes]
        weight = self._open / self._population
        if not sizes:
            return Estimate(0.0, weight)  # none of them was looked at: anything is possible
        found = share([self._hits[s] for s in sizes], looked, 1 - sum(looked) / self._open)
        return Estimate(weight * found.value, weight * found.error)


def examples(known: Mapping[str, Mapping[str, tuple[int, str]]], most: int = 8) -> list[dict[str, Any]]:
    """Items of the sample that are copies: {"bytes" of one, "count", "items": [[source, path], …]}, costliest first.

    known: source → path → (size, digest of its ends).
    """
    alike: dict[tuple[int, str], list[list[str]]] = defaultdict(list)
    for source, items in known.items():
        for path, about in items.items():
            alike[about].append([source, path])
    found: list[dict[str, Any]] = [
        {"bytes": size, "count": len(items), "items": items[:5]}
        for (size, _), items in alike.items()
        if size > 0 and len(items) > 1
    ]
    return sorted(found, key=lambda x: (-x["bytes"] * (x["count"] - 1), x["items"]))[:most]


def shared_records(ids: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Pairs of sources whose sampled records have ids in common, most first: {"sources", "records", "of"}."""
    sets = {name: set(found) for name, found in ids.items()}
    pairs = [
        {"sources": [a, b], "records": len(sets[a] & sets[b]), "of": min(len(sets[a]), len(sets[b]))}
        for i, a in enumerate(sets)
        for b in list(sets)[i + 1 :]
    ]
    return sorted((p for p in pairs if p["records"]), key=lambda p: -p["records"])
