"""A source that fails for a while stops nothing else, and nothing is forgotten."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sheaf import api, cli, recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.errors import TryAgain
from sheaf.prepare import gather
from sheaf.prepare.listing import found_in
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe
from sheaf.sources.base import Item

DOWN: set[str] = set()
ASKED: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """HEAD always answers; GET answers 503 for the pages in DOWN."""

    def do_HEAD(self) -> None:
        self._answer(200, b"")

    def do_GET(self) -> None:
        ASKED.append(self.path)
        page = f"The page {self.path} says enough about ledgers to be kept. ".encode() * 5
        self._answer(*((503, b"later") if self.path in DOWN else (200, page)))

    def _answer(self, code: int, body: bytes) -> None:
        page = f"The page {self.path} says enough about ledgers to be kept. ".encode() * 5
        self.send_response(code)
        if code == 503:
            self.send_header("Retry-After", "3600")  # nobody waits so long: it is deferred at once
        self.send_header("Content-Type", "text/plain")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(page) if code == 200 else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Recipe]:
    """A web source of three pages and a folder of one file."""
    DOWN.clear()
    ASKED.clear()
    (tmp_path / "files").mkdir()
    (tmp_path / "files/own.txt").write_text("A file of our own, which is there whatever the network does.")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        text = f"""
name: web
sources:
  - {{name: web, uri: "http://127.0.0.1:{httpd.server_address[1]}/", urls: [a.txt, b.txt, c.txt]}}
  - {{name: files, uri: ./files}}
prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}}}
"""
        (tmp_path / "sheaf.yaml").write_text(text)
        yield recipe_file.load(tmp_path / "sheaf.yaml")
        httpd.shutdown()
        thread.join()


def test_an_item_that_cannot_be_had_is_deferred_and_the_next_run_asks_only_for_it(web: Recipe) -> None:
    DOWN.add("/b.txt")
    first = prepare(web, workers=1)
    assert first["items"] == {"seen": 4, "read": 3, "unchanged": 0, "quarantined": 0, "deferred": 1}
    assert first["records"]["kept"] == 3
    assert first["bytes"]["in"] == sum(first["bytes"][k] for k in ("kept", "dropped", "quarantined"))
    (region,) = CorpusVersion.open(Path(web.workspace)).quarantine().to_pylist()
    assert region["reason"] == "deferred" and region["uri"].endswith("/b.txt") and "503" in region["detail"]
    DOWN.clear()
    ASKED.clear()
    second = prepare(web, workers=1)
    assert ASKED == ["/b.txt"]
    assert second["items"] == {"seen": 4, "read": 1, "unchanged": 3, "quarantined": 0, "deferred": 0}
    undisturbed = prepare(web.model_copy(update={"workspace": f"{web.workspace}-2"}), workers=1)
    assert second["corpus"] == undisturbed["corpus"]


def test_prepare_ends_with_75_and_train_does_not_begin(web: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    DOWN.add("/b.txt")
    path = str(Path(web.workspace).parent / "sheaf.yaml")
    assert cli.main(["prepare", path, "--strict"]) == 75
    told = capsys.readouterr()
    assert "1 deferred" in told.out and "next: sheaf prepare" in told.err
    assert cli.main(["train", path]) == 75
    assert "nothing is trained" in capsys.readouterr().err
    with pytest.raises(TryAgain, match="nothing is trained"):
        api.train(path, workers=1)


def test_deferred_bytes_do_not_count_as_refused(web: Recipe) -> None:
    DOWN.add("/b.txt")
    strict = web.model_copy(update={"prepare": web.prepare.model_copy(update={"refuse_above": 0.0})})
    assert prepare(strict, workers=1)["items"]["deferred"] == 1


def test_where_nothing_could_be_had_no_version_is_made(web: Recipe) -> None:
    DOWN.update(("/a.txt", "/b.txt", "/c.txt"))
    only = web.model_copy(update={"sources": web.sources[:1]})
    with pytest.raises(TryAgain, match="none of the items") as raised:
        prepare(only, workers=1)
    assert raised.value.exit_code == 75
    assert not Workspace(Path(web.workspace)).head.exists()


def test_a_source_that_cannot_be_listed_does_not_keep_the_others_from_being_read(
    web: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            gather, "found_in", lambda spec, recipe: _away() if spec.name == "web" else found_in(spec, recipe)
        )
        with pytest.raises(TryAgain, match="is away"):
            prepare(web, workers=1)
    store = Workspace(Path(web.workspace))
    assert len(store.finished_shards()) == 1
    assert not store.head.exists()
    again = prepare(web, workers=1)
    assert again["items"]["read"] == 3 and again["items"]["unchanged"] == 1


def _away() -> Iterator[Item]:
    raise TryAgain("the server is away")
    yield
