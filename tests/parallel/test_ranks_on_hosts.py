"""Two hosts with two ranks each sum inside first: the link between them carries less, the sum is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = [f"hosts{os.getpid() % 100000}{end}" for end in "ab"]
DEVICES = [f"h{os.getpid() % 100000}{end}" for end in "ab"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and `ip`"
)


@pytest.fixture
def link() -> Iterator[None]:
    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True)

    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", DEVICES[0], "type", "veth", "peer", "name", DEVICES[1])
        for at, (name, device) in enumerate(zip(NAMES, DEVICES, strict=True), 1):
            ip("link", "set", device, "netns", name)
            ip("-n", name, "addr", "add", f"10.97.0.{at}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    finally:
        for name in NAMES:
            ip("netns", "del", name, check=False)


def test_sums_go_inside_hosts_first_and_the_link_between_them_carries_less(link: None, tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", NAMES[rank // 2], sys.executable, str(HERE / "hosts_rank.py"), str(tmp_path)],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"},
                **{"MASTER_ADDR": "10.97.0.1", "MASTER_PORT": "29123", "GLOO_SOCKET_IFNAME": DEVICES[rank // 2]},
            },
        )
        for rank in range(4)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0, 0, 0]
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
