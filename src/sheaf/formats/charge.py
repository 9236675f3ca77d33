"""Split an item's bytes over what came out of it, to the byte.

Each container charges its members what they take in it (compressed). A stream's charge T is split in proportion to the
expanded bytes, W in all, along a running sum: the first pieces, of weight C, together take exactly floor(T·C/W) bytes
(Bresenham's line). So the parts are integers within one byte of their share, and their sum is exact at every level. And
a record's charge needs no other record: nothing per record is held until the item ends and T and W are known, and fifty
million records cost no memory here. A stream's records come first, then its regions, members, and structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = np.ndarray[Any, np.dtype[np.int64]]
_FITS = float(1 << 62)


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Integers in proportion to the weights which sum to total. All zero if the weights are."""
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    parts: list[int] = []
    weight = charged = 0
    for w in weights:
        weight += w
        parts.append(total * weight // whole - charged)
        charged += parts[-1]
    return parts


@dataclass(slots=True)
class Node:
    """A stream's bytes: `extent` in all, of which its own records have `records`, and parts[i] is (weight, target):
    region k as ~k, or another node. What is left of the extent is structure. number: of the stream inside the item.
    reached: where in the stream the last of them ends."""

    number: int
    extent: int = 0
    records: int = 0
    parts: list[tuple[int, int | Node]] = field(default_factory=list)
    reached: int = 0

    def add(self, weight: int, target: int | Node) -> None:
        self.parts.append((weight, target))

    @property
    def weight(self) -> int:
        """Of all that is in it, without structure."""
        return self.records + sum(weight for weight, _ in self.parts)


@dataclass(slots=True)
class Charges:
    """cost, whole: T and W of each stream by its number; the charges of its records follow by `RecordCharges`."""

    cost: list[int]
    whole: list[int]
    regions: list[int]
    structure: int


def charge(root: Node, size: int, streams: int, regions: int, *, refused: bool = False) -> Charges:
    """What streams, regions and the structure of an item of `size` bytes are charged; with the records the sum is size.

    refused: nothing became a record; then structure is charged to the regions, if there are any.
    """
    result = Charges([0] * streams, [1] * streams, [0] * regions, 0)
    open_nodes = [(root, size)]
    while open_nodes:
        node, cost = open_nodes.pop()
        weight = node.weight
        structure = max(0, node.extent - weight)
        result.cost[node.number], result.whole[node.number] = cost, max(1, weight + structure)
        parts = split(cost, [node.records, *(weight for weight, _ in node.parts), structure])
        result.structure += cost - sum(parts[:-1])
        for part, (_, target) in zip(parts[1:], node.parts, strict=False):
            if isinstance(target, Node):
                open_nodes.append((target, part))
            else:
                result.regions[~target] += part
    if refused and regions:
        shares = split(result.structure, result.regions if any(result.regions) else [1] * regions)
        result.regions = [a + b for a, b in zip(result.regions, shares, strict=True)]
        result.structure = 0
    return result


class RecordCharges:
    """The charges of records as they come, in order. cost, whole: int64 by number of stream, as in `Charges`."""

    def __init__(self, cost: Int64, whole: Int64) -> None:
        self._cost, self._whole = cost, whole
        self._rest = np.zeros(len(cost), np.int64)  # what the line is above the bytes charged so far, times whole

    def of(self, stream: NDArray[np.integer], weight: Int64) -> Int64:
        """Of the next records. stream: the number of each one's stream; weight: not negative."""
        if np.array_equal(self._cost[stream], self._whole[stream]):
            return weight
        order = np.argsort(stream, kind="stable")
        own, w = stream[order], weight[order]
        starts = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
        lengths = np.diff(np.append(starts, len(own)))
        so_far = np.cumsum(w)
        so_far -= np.repeat(so_far[starts] - w[starts], lengths)
        charged = self._charged(own, so_far)
        before = np.append(0, charged[:-1])
        before[starts] = 0
        result = np.empty(len(w), np.int64)
        result[order] = charged - before
        return result

    def _charged(self, stream: NDArray[np.integer], weight: Int64) -> Int64:
        """What is charged along each stream up to a weight, from where it stood; moves on to the last of each."""
        cost, whole, rest = self._cost[stream], self._whole[stream], self._rest[stream]
        if float(cost.max()) * float(weight.max()) < _FITS:
            line = rest + cost * weight
            charged = line // whole
            self._rest[stream] = line - charged * whole  # of equal numbers the last one stays
            return charged
        exact = [r + c * w for r, c, w in zip(rest.tolist(), cost.tolist(), weight.tolist(), strict=True)]
        wholes: list[int] = whole.tolist()
        self._rest[stream] = np.array([n % d for n, d in zip(exact, wholes, strict=True)], np.int64)
        return np.array([n // d for n, d in zip(exact, wholes, strict=True)], np.int64)
