"""Servers and patience that several tests of sources share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_server import Server, serving
from moto.server import ThreadedMotoServer

from sheaf.sources import retry


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    """The port of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()
