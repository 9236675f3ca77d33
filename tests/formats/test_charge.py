"""Bytes are split to the byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sheaf.formats.charge import Node, charge, split

weights = st.lists(st.integers(0, 1 << 40), max_size=30)


@given(st.integers(0, 1 << 50), weights)
def test_parts_sum_to_the_total_and_stay_within_one_of_their_share(total: int, weights: list[int]) -> None:
    parts = split(total, weights)
    whole = sum(weights)
    if whole:
        assert sum(parts) == total
        assert all(abs(part * whole - total * w) < whole for part, w in zip(parts, weights, strict=True))
    else:
        assert parts == [0] * len(weights)


@given(weights)
def test_bytes_that_were_not_compressed_are_charged_as_they_are(weights: list[int]) -> None:
    assert split(sum(weights), weights) == weights


def test_ties_go_to_the_first() -> None:
    assert split(5, [1, 1, 1]) == [2, 2, 1]


def trees(depth: int) -> st.SearchStrategy[list[object]]:
    leaf = st.tuples(st.sampled_from(["record", "region"]), st.integers(0, 1 << 20))
    if depth == 0:
        return st.lists(leaf, max_size=4)  # type: ignore[return-value]
    return st.lists(leaf | st.tuples(trees(depth - 1), st.integers(0, 1 << 20)), max_size=4)  # type: ignore[return-value]


def build(tree: list[object], counts: dict[str, int], spare: int) -> Node:
    node = Node()
    for what, weight in tree:  # type: ignore[misc]
        if isinstance(what, list):
            node.add(weight, build(what, counts, spare))
        else:
            number = counts[what]
            counts[what] += 1
            node.add(weight, number if what == "record" else ~number)
    node.extent = sum(node.weights) + spare
    return node


@given(trees(3), st.integers(0, 1 << 30), st.integers(0, 100))
def test_nested_containers_conserve_every_byte(tree: list[object], size: int, spare: int) -> None:
    counts = {"record": 0, "region": 0}
    node = build(tree, counts, spare)
    result = charge(node, size, counts["record"], counts["region"])
    assert sum(result.records) + sum(result.regions) + result.structure == size
    assert min([*result.records, *result.regions, result.structure]) >= 0
    if counts["record"] == 0 and counts["region"]:
        assert result.structure == 0
