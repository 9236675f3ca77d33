"""Estimates come with errors that hold as often as they say."""

from __future__ import annotations

import random

from sheaf.scan.copies import between, within
from sheaf.scan.estimate import share, total
from sheaf.scan.forecast import forecast
from sheaf.scan.sample import Stratum, choose
from sheaf.sources.base import Item


def test_a_total_lies_within_its_error_in_nearly_all_surveys() -> None:
    rng = random.Random(5)
    sizes = [rng.randint(1_000, 50_000) for _ in range(2_000)]
    amounts = [s * rng.uniform(0.5, 1.5) / 1_000 for s in sizes]
    hits = 0
    for seed in range(300):
        chosen = random.Random(seed).sample(range(len(sizes)), 60)
        picked = [sizes[i] for i in chosen]
        found = total([amounts[i] for i in chosen], picked, picked, len(sizes), sum(sizes))
        hits += abs(found.value - sum(amounts)) <= found.error
    assert hits / 300 > 0.9


def test_what_was_seen_as_a_whole_has_no_error() -> None:
    found = total([3, 4], [10, 20], [10, 20], 2, 30)
    assert (found.value, found.error) == (7, 0)


def test_an_item_read_in_part_counts_as_if_the_rest_were_alike() -> None:
    assert total([5], [100], [1_000], 1, 1_000).value == 50


def test_nothing_found_in_few_is_no_proof_of_none() -> None:
    assert share([0] * 20, [1] * 20, 0.98).error >= 0.15


def items(source: str, sizes: list[int]) -> list[Item]:
    return [Item(source, f"{n}.txt", f"/{n}", "v", size) for n, size in enumerate(sizes)]


def test_the_share_of_copies_lies_within_its_error_in_nearly_all_surveys() -> None:
    hits = 0
    for seed in range(100):
        rng = random.Random(seed)
        first = [rng.randint(1, 10**6) for _ in range(600)]
        second = first[:240] + [rng.randint(1, 10**6) for _ in range(360)]
        a, b = items("a", first), items("b", second)
        sampled = [{i.path: str(i.size) for s in choose(x, 0.1) for i in s.chosen} for x in (a, b)]
        found = between(b, a, sampled[1], sampled[0])
        hits += abs(found.value - 0.4) <= found.error
    assert hits > 88


def test_items_of_one_size_with_other_contents_are_no_copies() -> None:
    listed = items("a", [100] * 50)
    assert within(listed, {i.path: i.path for i in listed}).value == 0
    assert within(listed, {i.path: "same" for i in listed}).value == 49 / 50


def test_time_is_scaled_kind_by_kind() -> None:
    """A hundred slow documents seen as a whole say nothing of the speed of a million bytes of text."""
    known = {"text_bytes": 0, "characters": 0, "packed_bytes": 0, "payload_bytes": 0, "records": 1}
    slow = Stratum("s", ".pdf", items=100, bytes=100_000)
    fast = Stratum("s", ".txt", items=10_000, bytes=1_000_000_000)
    looks = [
        (slow, [{**known, "read": 1000, "size": 1000, "seconds": 1.0}] * 100),
        (fast, [{**known, "read": 100_000, "size": 100_000, "seconds": 0.001}] * 20),
    ]
    found = forecast(looks, items=10_100, workers=1)["seconds"]["value"]
    assert 100 + 10 <= found <= 100 + 10 + 5


def test_memory_grows_with_workers_and_little_with_records() -> None:
    known = {"characters": 0, "packed_bytes": 0, "payload_bytes": 0, "read": 10_000_000, "size": 10_000_000}
    look = {**known, "text_bytes": 10_000_000, "records": 10_000, "seconds": 0.1}

    def bytes_of(files: int, workers: int) -> float:
        looks = [(Stratum("s", ".jsonl", items=files, bytes=files * 10_000_000), [look] * 10)]
        return forecast(looks, items=files, workers=workers)["memory_bytes"]["value"]

    # What bench/prepare_scale.py measured, of two workers and 10,000, 100,000 and a million records.
    for files, measured in ((1, 0.94e9), (10, 1.17e9), (100, 1.38e9)):
        assert abs(bytes_of(files, 2) / measured - 1) < 0.2
    assert bytes_of(10, 8) > 2.5 * bytes_of(10, 2)
