"""Two hosts with two ranks each sum inside first: the link between them carries less, the sum is the same."""

from __future__ import annotations

import json
from pathlib import Path

from tests.parallel.hosts import ended, needs_namespaces, start, two_hosts

HERE = Path(__file__).parent


@needs_namespaces
def test_sums_go_inside_hosts_first_and_the_link_between_them_carries_less(tmp_path: Path) -> None:
    with two_hosts() as (a, b):
        ended(start([a, a, b, b], [str(HERE / "hosts_rank.py"), str(tmp_path)]))
    told = [json.loads((tmp_path / f"{rank}.json").read_bytes()) for rank in range(4)]
    assert [one["inside"] for one in told] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [one["between"] for one in told] == [[0, 2], None, [0, 2], None]
    for way, less in (("fp32", 0.75), ("int8", 0.8), ("topk", 0.6)):
        by_host = [one[f"{way} by host"] for one in told]
        flat = [one[f"{way} flat"] for one in told]
        assert len({one["bits"] for one in by_host}) == len({one["bits"] for one in flat}) == 1
        assert max(one["off"] for one in (*by_host, *flat)) < 1e-4
        assert [one["keeps"] for one in by_host] == ([False] * 4 if way == "fp32" else [True, False, True, False])
        assert max(one["bytes"] for one in by_host) < less * min(one["bytes"] for one in flat)
