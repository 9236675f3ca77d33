"""Training over a workspace in an object store, through a cache that may be smaller than the corpus. On moto's S3."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from chaos_proxy import Proxy, at_random, proxied, refuse
from moto.server import ThreadedMotoServer
from obstore.store import S3Store
from training_corpus import make_corpus

from sheaf.api import Corpus
from sheaf.corpus import block_cache
from sheaf.corpus.blocks import BLOCK_BYTES
from sheaf.corpus.workspace import Workspace
from sheaf.errors import CorruptStore, EnvironmentProblem, UsageError
from sheaf.order.gather import Gatherer
from sheaf.order.loader import Batch
from sheaf.sources import retry

URL = "s3://acme/spaces/one"
STEPS, FEW = 15, 4  # steps that a test reads; a small cache costs many requests
BLOCKS = 20  # of the corpus: two token files, and what of the first one is predicted
SMALL, LARGE = "0.0006", "1"  # GB: 9 blocks, and more than all

READER = """
import hashlib, sys
from sheaf.api import Corpus
from sheaf.corpus import block_cache
block_cache.TOGETHER, block_cache.GAP, block_cache.WORKERS = 1, -1, 2
with Corpus.open(sys.argv[1]).loader(64, 8, rank=int(sys.argv[2]), world=int(sys.argv[3]), strict=True) as loader:
    for batch in loader:
        print(batch.step, hashlib.sha256(batch.input_ids.tobytes() + batch.labels.tobytes()).hexdigest(), flush=True)
        if batch.step == int(sys.argv[4]) - 1:
            break
"""


class Requests:
    """What was asked of the store: how often for which bytes of which file."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy, self.ranges, self._changed = proxy, Counter[tuple[str, str]](), threading.Condition()
        self.bad: Any = lambda request: False
        proxy.disturb = self._note

    def _note(self, request: Any) -> bool:
        with self._changed:
            if "Range" in request.headers:
                self.ranges[request.path, request.headers["Range"]] += 1
                self._changed.notify_all()
        return self.bad(request)

    def wait_for(self, number: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: sum(self.ranges.values()) >= number, timeout=300)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[str, str], list[Batch]]]:
    """A corpus in the store, and its first batches as the machine that made it reads them from its disk."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "canary-4711",
        "AWS_REGION": "us-east-1",
        "XDG_DATA_HOME": str(tmp_path_factory.mktemp("maker")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", "/acme")
        assert connection.getresponse().status == 200
        connection.close()
        workspace = Workspace.at(URL)
        make_corpus(workspace.root, documents=6000, chats=True)
        files = Corpus.open(URL).files
        assert sum(len(f.state) for f in [*files.tokens, *files.losses] if f is not None) == BLOCKS
        assert all(f.lasting for f in files.tokens)  # they lie here
        yield port, environment, read()
    server.stop()


@pytest.fixture
def requests(far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    """A machine that has seen nothing of the corpus, behind a network that may be disturbed."""
    for name, value in far[1].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SHEAF_CACHE_GB", LARGE)
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.001)
    with proxied(far[0]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Requests(proxy)


def read(steps: int = STEPS, **options: Any) -> list[Batch]:
    found: list[Batch] = []
    wanted: dict[str, Any] = {"strict": True, **options}
    with Corpus.open(URL).loader(64, 8, **wanted) as loader:
        for batch in loader:
            found.append(batch)
            if len(found) == steps:
                break
    return found


def reader(rank: int, world: int, steps: int = STEPS) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READER, URL, str(rank), str(world), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def alike(batches: list[Batch], others: list[Batch]) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(batches, others, strict=True)
        for name in ("input_ids", "labels", "position_ids", "document_ids")
    )


def told(batches: list[Batch], rank: int, world: int) -> list[str]:
    """What `reader` prints of them."""
    lines: list[str] = []
    for batch in batches:
        mine = batch.order.split_ranks(batch.step, world)[rank]
        data = batch.input_ids[mine].tobytes() + batch.labels[mine].tobytes()
        lines.append(f"{batch.step} {hashlib.sha256(data).hexdigest()}")
    return lines


def on_the_disk(tmp_path: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (tmp_path / "cache").rglob("*.data"))


def test_a_cache_smaller_than_the_corpus_gives_the_same_batches_and_keeps_its_size(
    far: Any, requests: Requests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEAF_CACHE_GB", SMALL)
    assert alike(read(FEW), far[2][:FEW])
    assert 0 < on_the_disk(tmp_path) <= 600_000
    assert sum(requests.ranges.values()) > BLOCKS  # what was taken away was fetched again
    assert not list((tmp_path / "data").rglob("tokens.bin"))  # and no file as a whole


def test_a_large_one_fetches_everything_once_and_later_nothing(far: Any, requests: Requests, tmp_path: Path) -> None:
    assert alike(read(), far[2])
    assert set(requests.ranges.values()) == {1}
    assert len(requests.ranges) < BLOCKS  # neighbours come together
    seen = len(requests.ranges)
    assert alike(read(), far[2]) and len(requests.ranges) == seen
    assert on_the_disk(tmp_path) <= (BLOCKS + 3) * BLOCK_BYTES


def test_the_ranks_of_a_machine_share_it(far: Any, requests: Requests) -> None:
    ranks = [reader(rank, 2) for rank in range(2)]
    for rank, process in enumerate(ranks):
        assert process.communicate(timeout=300)[0].splitlines() == told(far[2], rank, 2)
    assert len(requests.ranges) == BLOCKS and set(requests.ranges.values()) == {1}


def test_two_jobs_that_take_each_other_s_blocks_away_read_right(
    far: Any, requests: Requests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEAF_CACHE_GB", SMALL)
    jobs = [reader(rank, 2, FEW) for rank in range(2)]
    for rank, process in enumerate(jobs):
        assert process.communicate(timeout=300)[0].splitlines() == told(far[2][:FEW], rank, 2)
    assert on_the_disk(tmp_path) <= 600_000
    assert max(requests.ranges.values()) > 1


def test_what_is_taken_away_while_it_is_copied_is_read_again(
    far: Any, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another job may do at any moment, here at the worst: a reader that did not look again would train zeros."""
    real, lost = Gatherer._read, list[int]()  # pyright: ignore[reportPrivateUsage]

    def read_and_lose(self: Any, rows: Any, out: Any) -> bool:
        done = real(self, rows, out)
        if done and len(lost) < 3:
            lost.append(len(rows))
            for file in self._files.values():
                file.state[:] += 2  # away, and there again
            for array in out:
                array[:] = 0
        return done

    monkeypatch.setattr(Gatherer, "_read", read_and_lose)
    assert alike(read(FEW), far[2][:FEW]) and len(lost) == 3


def test_a_job_that_is_killed_while_it_fetches_leaves_what_it_had(far: Any, requests: Requests) -> None:
    requests.proxy.delay_seconds = 0.05
    killed = reader(0, 1)
    requests.wait_for(BLOCKS // 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    requests.proxy.delay_seconds = 0.0
    assert reader(0, 1).communicate(timeout=300)[0].splitlines() == told(far[2], 0, 1)
    again = [asked for asked, times in requests.ranges.items() if times > 1]
    assert len(requests.ranges) == BLOCKS and len(again) <= 2 + 2  # those under way, and one that was just written


def test_requests_that_fail_cost_time_and_no_token(far: Any, requests: Requests) -> None:
    failures = Counter[str]()
    flaky = at_random(0.3, seed=5)

    def bad(request: Any) -> bool:
        failed = "Range" in request.headers and flaky(request)
        failures["range"] += failed
        return failed

    requests.bad = bad
    lines = reader(0, 1).communicate(timeout=300)[0].splitlines()
    assert lines == told(far[2], 0, 1)
    assert failures["range"] > 3


def test_a_store_that_refuses_says_so_in_the_training_thread(requests: Requests) -> None:
    requests.bad = lambda request: "Range" in request.headers and refuse(request, 403)
    with pytest.raises(EnvironmentProblem, match="refuses"):
        read()


def test_a_flipped_byte_in_the_cache_is_fetched_again(far: Any, requests: Requests, tmp_path: Path) -> None:
    read()
    before = sum(requests.ranges.values())
    for path in (tmp_path / "cache").rglob("*.data"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert alike(read(), far[2])
    assert sum(requests.ranges.values()) > before


def test_a_flipped_byte_in_the_cache_s_index_costs_a_request_at_most(
    far: Any, requests: Requests, tmp_path: Path
) -> None:
    read()
    for path in [*(tmp_path / "cache").rglob("*.index"), *(tmp_path / "cache").rglob("usage")]:
        data = bytearray(path.read_bytes())
        for at in (3, len(data) - 4):
            data[at] ^= 1
        path.write_bytes(data)
    assert alike(read(), far[2])


def test_what_is_damaged_in_the_store_is_named_and_replaced_alike(
    far: Any, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = S3Store("acme", client_options={"allow_http": True}, endpoint=far[1]["AWS_ENDPOINT_URL"])
    key = "spaces/one/tokens/tok/shard1/tokens.bin"
    sound = bytes(obstore.get(bucket, key).bytes())
    try:
        damaged = bytearray(sound)
        damaged[BLOCK_BYTES + 7] ^= 1
        obstore.put(bucket, key, bytes(damaged))
        with pytest.raises(CorruptStore, match="damaged") as caught:
            read()
        assert "shard1/tokens.bin, block 1, bytes 65536 to 131072" in caught.value.where
        with pytest.warns(UserWarning, match="block 1"):
            first = read(strict=False)
        assert alike(first, read(strict=False)) and sum(len(batch.replaced) for batch in first) > 3
        obstore.put(bucket, key, sound[: 3 * BLOCK_BYTES])
        monkeypatch.setenv("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"] + "-2")
        with pytest.raises(CorruptStore, match="damaged"):
            read()
    finally:
        obstore.put(bucket, key, sound)


def test_damage_on_this_machine_s_disk_is_mended_from_the_store(
    far: Any, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", far[1]["XDG_DATA_HOME"])
    [path] = Path(far[1]["XDG_DATA_HOME"]).rglob("shard1/tokens.bin")
    sound = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(BLOCK_BYTES + 9)
        file.write(b"\xff\xff\xff")
    assert alike(read(), far[2])
    assert path.read_bytes() == sound


def test_a_size_that_is_none_and_one_in_which_nothing_fits_are_refused(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEAF_CACHE_GB", "plenty")
    with pytest.raises(UsageError, match="SHEAF_CACHE_GB"):
        read()
    monkeypatch.setenv("SHEAF_CACHE_GB", "0.00001")
    with pytest.raises(EnvironmentProblem, match="too small"):
        read()


def test_stretches_are_what_was_asked_for_first_things_first() -> None:
    assert block_cache.stretches([20, 3, 4], 1, 30) == [(20, 21), (3, 5)]
    assert block_cache.stretches([7, 3, 4, 20], 1, 30) == [(3, 8), (20, 21)]  # two that lie between come along
    assert block_cache.stretches([17], 16, 30) == [(16, 30)]
