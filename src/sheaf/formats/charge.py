"""Split an item's bytes over what came out of it, to the byte.

Each container charges its members what they take in it (compressed); a member's charge is split over its records,
regions and structure in proportion to their expanded bytes, by largest remainder (Hamilton's method): the parts are
integers and their sum is exact, at every level, so also for the whole item. O(pieces log pieces) an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Integers in proportion to the weights which sum to total; ties go to the first. All zero if the weights are."""
    whole = sum(weights)
    if whole == total:
        return list(weights)
    if whole == 0:
        return [0] * len(weights)
    parts = [total * w // whole for w in weights]
    missing = total - sum(parts)
    if missing:
        by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
        for i in by_remainder[:missing]:
            parts[i] += 1
    return parts


@dataclass(slots=True)
class Node:
    """A stream's bytes: `extent` in all, of which weights[i] belong to targets[i]: record k as k, region k as ~k, or
    another node. What is left of the extent is structure. reached: where in the stream the last of them ends."""

    extent: int = 0
    weights: list[int] = field(default_factory=list)
    targets: list[int | Node] = field(default_factory=list)
    reached: int = 0

    def add(self, weight: int, target: int | Node) -> None:
        self.weights.append(weight)
        self.targets.append(target)


@dataclass(slots=True)
class Charges:
    records: list[int]
    regions: list[int]
    structure: int


def charge(root: Node, size: int, records: int, regions: int) -> Charges:
    """What each record, each region and the structure of an item of `size` bytes is charged; the sum is size.

    If nothing became a record, structure is charged to the regions: an item that is wholly refused has none.
    """
    result = Charges([0] * records, [0] * regions, 0)
    open_nodes = [(root, size)]
    while open_nodes:
        node, cost = open_nodes.pop()
        structure = max(0, node.extent - sum(node.weights))
        parts = split(cost, [*node.weights, structure])
        result.structure += cost - sum(parts[:-1])
        for part, target in zip(parts, node.targets, strict=False):
            if isinstance(target, Node):
                open_nodes.append((target, part))
            elif target >= 0:
                result.records[target] += part
            else:
                result.regions[~target] += part
    if records == 0 and regions:
        shares = split(result.structure, result.regions if any(result.regions) else [1] * regions)
        result.regions = [a + b for a, b in zip(result.regions, shares, strict=True)]
        result.structure = 0
    return result
