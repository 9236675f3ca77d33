"""Bytes are split to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.formats.charge import Node, RecordCharges, charge, split

weights = st.lists(st.integers(0, 1 << 40), max_size=30)


@settings(deadline=None)
@given(st.integers(0, 1 << 50), weights)
def test_parts_sum_to_the_total_and_stay_within_one_of_their_share(total: int, weights: list[int]) -> None:
    parts = split(total, weights)
    whole = sum(weights)
    if whole:
        assert sum(parts) == total
        assert all(abs(part * whole - total * w) < whole for part, w in zip(parts, weights, strict=True))
    else:
        assert parts == [0] * len(weights)


@settings(deadline=None)
@given(weights)
def test_bytes_that_were_not_compressed_are_charged_as_they_are(weights: list[int]) -> None:
    assert split(sum(weights), weights) == weights


def trees(depth: int) -> st.SearchStrategy[list[Any]]:
    leaf = st.tuples(st.sampled_from(["record", "region"]), st.integers(0, 1 << 20))
    if depth == 0:
        return st.lists(leaf, max_size=4)
    return st.lists(leaf | st.tuples(trees(depth - 1), st.integers(0, 1 << 20)), max_size=4)


class Tree:
    """An item made of a nested list. records: (stream, weight) of each, in order."""

    def __init__(self, tree: list[Any], spare: int) -> None:
        self.records: list[tuple[int, int]] = []
        self.regions = self.streams = 0
        self.root = self._node(tree, spare)

    def _node(self, tree: list[Any], spare: int) -> Node:
        node = Node(self.streams)
        self.streams += 1
        for what, weight in tree:
            if what == "record":
                self.records.append((node.number, weight))
                node.records += weight
            elif what == "region":
                node.add(weight, ~self.regions)
                self.regions += 1
            else:
                node.add(weight, self._node(what, spare))
        node.extent = node.weight + spare
        return node


def record_charges(cost: list[int], whole: list[int], records: list[tuple[int, int]], frame: int) -> list[int]:
    """As they come, so many at a time."""
    charges = RecordCharges(np.array(cost, np.int64), np.array(whole, np.int64))
    result: list[int] = []
    for start in range(0, len(records), frame):
        stream, weight = np.array(records[start : start + frame], np.int64).T
        result += charges.of(stream, weight).tolist()
    return result


@settings(deadline=None)
@given(trees(3), st.integers(0, 1 << 40), st.integers(0, 100), st.integers(1, 5))
def test_nested_containers_conserve_every_byte(tree: list[Any], size: int, spare: int, frame: int) -> None:
    item = Tree(tree, spare)
    result = charge(item.root, size, item.streams, item.regions, refused=not item.records)
    records = record_charges(result.cost, result.whole, item.records, frame)
    assert sum(records) + sum(result.regions) + result.structure == size
    assert min([*records, *result.regions, result.structure]) >= 0
    if not item.records and item.regions:
        assert result.structure == 0


huge = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 36)), min_size=1, max_size=40)


@settings(deadline=None)
@given(huge, st.lists(st.integers(0, 1 << 36), min_size=4, max_size=4), st.integers(1, 7))
def test_records_are_charged_alike_however_they_are_cut_into_frames(
    records: list[tuple[int, int]], cost: list[int], frame: int
) -> None:
    whole = [max(1, sum(w for s, w in records if s == stream)) for stream in range(4)]
    found = record_charges(cost, whole, records, frame)
    for stream in range(4):
        own = [w for s, w in records if s == stream]
        expected = split(cost[stream], own)
        assert [b for b, (s, _) in zip(found, records, strict=True) if s == stream] == expected
