"""What a place refuses is in the ledger, and asked for again at the next run."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sheaf import recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare

PAGE = b"<html><body><article><p>" + b"A page about ledgers and lineage. " * 20 + b"</p></article></body></html>"

BROKEN: set[str] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    """HEAD promises every page; GET refuses those in BROKEN."""

    def do_HEAD(self) -> None:
        self._answer(200, b"")

    def do_GET(self) -> None:
        self._answer(*((404, b"gone") if self.path in BROKEN else (200, PAGE + self.path.encode())))

    def _answer(self, code: int, body: bytes) -> None:
        length = len(PAGE + self.path.encode()) if code == 200 else len(body)
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/"
        httpd.shutdown()
        thread.join()


def test_a_url_that_ends_in_404_is_quarantined_the_rest_is_kept_and_it_is_asked_again(
    server: str, tmp_path: Path
) -> None:
    BROKEN.add("/b.html")
    text = f"""
name: web
sources: [{{name: web, uri: "{server}", urls: [a.html, b.html]}}]
prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}}}
"""
    recipe = recipe_file.loads(text, tmp_path)
    first = prepare(recipe, workers=1)
    assert first["records"]["kept"] == 1
    assert first["quarantine"]["http-404"]["regions"] == 1
    ledger = CorpusVersion.open(Path(recipe.workspace)).ledger().to_pylist()
    assert [r["uri"].rpartition("/")[2] for r in ledger] == ["a.html", "b.html"]
    assert prepare(recipe, workers=1)["corpus"] == first["corpus"]
    BROKEN.clear()  # repaired, with the same etag
    repaired = prepare(recipe, workers=1)
    assert repaired["records"]["kept"] == 2
    assert repaired["items"]["read"] == 1
