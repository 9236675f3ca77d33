"""Which items a survey looks at, and how much of each: a stated share of the bytes, from every kind of item.

A stratum is the items of one source with one suffix. In each, items are taken in the order of a hash of their *size*:
items of one size are taken together or not at all, so copies of a file, in one source or in two, are seen as copies
however small the sample is. At least `LEAST` items of each stratum, then as many as the share of its bytes allows. Of a
large item only the beginning is read. O(n log n) in the items listed, 50 bytes each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from sheaf.formats.detect import suffix_of
from sheaf.sources.base import Item

LEAST = 20
SMALLEST_LOOK, LARGEST_LOOK = 64 << 10, 8 << 20  # bytes of text that are read of one item
MOST_OF_A_SIZE = 200  # of items with one size: a camera's or a database's blocks would fill the sample


@dataclass
class Stratum:
    """The items of one source with one suffix. items, bytes: all of them. chosen: those to look at. look: how much text
    of each."""

    source: str
    suffix: str
    items: int = 0
    bytes: int = 0
    chosen: list[Item] = field(default_factory=list[Item])
    look: int = SMALLEST_LOOK


def choose(
    items: Sequence[Item], share: float, *, least: int = LEAST, whole_only_below: int | None = None
) -> list[Stratum]:
    """The strata of a listing, largest first, each with its sample.

    share: of the bytes, 0 to 1. whole_only_below: items of more bytes are left out of the sample, for places that can
    give an item only as a whole.
    """
    strata: dict[tuple[str, str], Stratum] = {}
    members: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        key = (item.source, suffix_of(item.path))
        stratum = strata.setdefault(key, Stratum(*key))
        stratum.items += 1
        stratum.bytes += max(item.size, 0)
        members.setdefault(key, []).append(item)
    for key, stratum in strata.items():
        _fill(stratum, members[key], share, least, whole_only_below)
    return sorted(strata.values(), key=lambda s: (-s.bytes, s.source, s.suffix))


def _fill(stratum: Stratum, items: list[Item], share: float, least: int, whole_only_below: int | None) -> None:
    by_size: dict[int, list[Item]] = {}
    for item in items:
        by_size.setdefault(item.size, []).append(item)
    budget = share * stratum.bytes
    stratum.look = int(min(max(budget / least, SMALLEST_LOOK), LARGEST_LOOK))
    spent = 0
    for size in sorted(by_size, key=_rank):
        if len(stratum.chosen) >= least and spent >= budget:
            return
        if whole_only_below is not None and size > whole_only_below:
            continue
        for item in by_size[size][:MOST_OF_A_SIZE]:
            stratum.chosen.append(item)
            spent += min(max(size, 0), stratum.look)


def _rank(size: int) -> bytes:
    return hashlib.blake2b(size.to_bytes(8, "little", signed=True), digest_size=8).digest()
