"""Threads that talk to servers work in order, hand on errors, and hold up nobody who wants to leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sheaf.sources.connections import Connections, promptly


def test_results_come_in_order_from_as_many_threads_as_there_are_and_errors_in_their_turn() -> None:
    together = threading.Barrier(4)

    def call(n: int) -> int:
        if n < 4:
            together.wait(20)  # breaks unless four work at once
        if n == 6:
            raise ValueError("six")
        return n * n

    with Connections(4, "t") as pool:
        found = pool.map(call, range(8))
        assert [next(found) for _ in range(6)] == [0, 1, 4, 9, 16, 25]
        with pytest.raises(ValueError, match="six"):
            next(found)


def test_leaving_in_the_ordinary_way_waits_and_leaving_by_an_error_does_not() -> None:
    go, ended = threading.Event(), list[int]()

    def call(n: int) -> None:
        go.wait(60)
        ended.append(n)

    with pytest.raises(KeyboardInterrupt), Connections(1, "t") as pool:
        futures = [pool.submit(call, n) for n in range(3)]
        raise KeyboardInterrupt
    assert ended == [] and futures[2].cancelled()
    go.set()
    with Connections(2, "t") as pool:
        pool.submit(call, 7)
        pool.submit(call, 8)
        futures[0].result(20)
        while len(ended) < 3:
            pool.submit(lambda _: None, 0).result(20)
    assert set(ended) == {0, 7, 8}


def test_a_call_that_is_made_promptly_gives_what_it_gives_and_raises_what_it_raises() -> None:
    assert promptly(lambda: 3) == 3
    with pytest.raises(KeyError):
        promptly(lambda: {}[1])


LISTING = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
from sheaf.recipe import SourceSpec
from sheaf.sources.registry import open_source
spec = SourceSpec.model_validate({source})
sys.stderr.write("begun\\n")
sys.stderr.flush()
try:
    list(open_source(spec).list_items())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("scheme", ["http", "az", "s3"])
def test_ctrl_c_ends_a_process_whose_server_never_answers(tmp_path: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(30)
        url, anonymous = f"http://127.0.0.1:{port}", {"anonymous": "true"}
        source = {
            "http": {"name": "s", "uri": url, "urls": [f"{url}/{n}" for n in range(20)]},
            "az": {"name": "s", "uri": "az://bucket/x/",
                   "options": {"endpoint": f"{url}/acme", "account_name": "acme", **anonymous}},
            "s3": {"name": "s", "uri": "s3://bucket/x/", "options": {"endpoint": url, **anonymous}},
        }[scheme]  # fmt: skip
        command = [sys.executable, "-c", LISTING.format(source=source)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=dict(os.environ)) as process:
            assert process.stderr is not None and process.stderr.readline() == b"begun\n"
            asked, _ = server.accept()  # it waits for us now
            with asked:
                begun = time.monotonic()
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 130, process.stderr.read()
                assert time.monotonic() - begun < 5
