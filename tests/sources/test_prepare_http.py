"""`prepare` over HTTP: a tenth of the requests fail, and once nobody answers for a while; the corpus is the same."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_server import Server, answer, serving

from sheaf import recipe_file
from sheaf.prepare.pipeline import prepare

PAGES = 60


class Weather:
    """Decides for each request whether it is answered. after: requests before the outage begins."""

    def __init__(self) -> None:
        self.share, self.outage_seconds, self.after = 0.0, 0.0, 10**9
        self.failures: Counter[str] = Counter()
        self._chance, self._lock, self._until, self._seen = random.Random(4), threading.Lock(), 0.0, 0

    def spoils(self) -> str:
        with self._lock:
            self._seen += 1
            if self._seen == self.after:
                self._until = time.monotonic() + self.outage_seconds
            kind = "away" if time.monotonic() < self._until else "flaky" if self._chance.random() < self.share else ""
            self.failures[kind] += 1
            return kind


@pytest.fixture
def site() -> Iterator[tuple[Server, Weather]]:
    weather, words = Weather(), random.Random(1)
    with serving() as server:
        for n in range(PAGES):
            body = " ".join(words.choice(("sheaf", "gather", "prepare", "train", "trace")) for _ in range(400)).encode()

            def route(request: Any, body: bytes = b"%d " % n + body) -> None:
                kind = weather.spoils()
                if kind == "away":  # no answer at all: the connection ends
                    request.close_connection = True
                elif kind:
                    answer(request, 503)
                else:
                    answer(request, 200, body, ETag='"v1"', Content_Type="text/plain")

            server.routes[f"/{n}.txt"] = route
        yield server, weather


def run(server: Server, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    urls = ", ".join(f"{n}.txt" for n in range(PAGES))
    (folder / "sheaf.yaml").write_text(
        f'name: t\nsources: [{{name: web, uri: "{server.url}", urls: [{urls}]}}]\n'
        "prepare: {tokenizer: {train: bpe, vocab_size: 300}}\n"
    )
    return prepare(recipe_file.load(folder / "sheaf.yaml"), workers=2)


@pytest.mark.parametrize("outage_seconds", [1, pytest.param(300, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_failing_requests_and_an_outage_change_no_bit(
    outage_seconds: float, site: tuple[Server, Weather], tmp_path: Path
) -> None:
    server, weather = site
    calm = run(server, tmp_path / "calm")["corpus"]
    weather.share, weather.outage_seconds, weather.after = 0.1, outage_seconds, 3 * PAGES  # while bodies are fetched
    began = time.monotonic()
    result = run(server, tmp_path / "storm")
    assert time.monotonic() - began > outage_seconds
    if result["items"]["deferred"]:  # the next run takes up what is missing
        result = run(server, tmp_path / "storm")
    assert result["items"]["deferred"] == 0 and result["corpus"] == calm
    assert weather.failures["away"] and weather.failures["flaky"] > 3, weather.failures
