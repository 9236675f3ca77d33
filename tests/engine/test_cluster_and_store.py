"""A cluster whose nodes share no disk: the workspace lies in an object store (moto), each node has its mirror."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path

import mixed_sources
import pytest
from moto.server import ThreadedMotoServer
from ray_cluster import cluster

from sheaf.api import Corpus
from sheaf.prepare import read
from sheaf.prepare.pipeline import prepare

URL = "s3://acme/mixed"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/acme")
    assert connection.getresponse().status == 200
    connection.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield
    server.stop()


def test_nodes_that_share_nothing_but_an_object_store_make_the_same_corpus(
    store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "BATCH_ITEMS", 8)
    mixed_sources.make(tmp_path / "data")
    expected = prepare(mixed_sources.recipe(tmp_path / "data", "./here"), workers=2)["corpus"]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "driver"))
    with cluster(0) as nodes:
        for name in ("node-1", "node-2"):
            nodes.add(XDG_DATA_HOME=str(tmp_path / name))
        assert prepare(mixed_sources.recipe(tmp_path / "data", URL), engine="ray")["corpus"] == expected
    for name in ("node-1", "node-2"):  # each has done some of the work, and holds what it needed for that
        assert list((tmp_path / name).glob("sheaf/workspaces/*/shards/*/DONE"))
        assert not list((tmp_path / name).glob("sheaf/workspaces/*/corpora/*"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "reader"))
    corpus = Corpus.open(URL)
    assert corpus.digest == expected
    assert all(corpus.texts(range(len(corpus.documents))))
