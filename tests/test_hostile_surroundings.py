"""Secrets are in nothing that we write or say, and names that attack are shown without doing harm."""

from __future__ import annotations

import base64
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest

SECRETS = {name: f"canary-{name}-4711" for name in ("password", "header", "environment", "broken")}
SAID = "canary-said-4711"  # in an item: it belongs into records, and nowhere else
NAMES = ["line\nbreak.txt", "esc\x1b[2J\x1b]0;x\x07.txt", "rtl\u202etxt.exe.txt", "<script>x<.txt", "=cmd|'x'!A0.txt"]
NAMES += ["-rf.txt", "$(touch pwned).txt", "{env: CANARY}.txt", "%00.txt", "a" * 250 + ".txt", "bad\udcff.txt"]
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
FORMS = [form for s in SECRETS.values() for form in (s, s.encode("utf-16-le").decode("latin-1"))]
FORMS.append(base64.b64encode(f"reader:{SECRETS['password']}".encode()).decode())


@dataclass
class Run:
    """folder: where everything lies. said: what the verbs wrote to the terminal, by verb; codes: how they ended."""

    folder: Path
    said: dict[str, str]
    codes: dict[str, int]


class _Pages(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Authorization']} {self.headers['X-Token']}")
        page = b"A page that is long enough to be kept, and does not say who asked for it."
        self.send_response(200 if "page" in self.path else 403)
        self.send_header("Content-Length", str(len(page)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    base = tmp_path_factory.mktemp("surroundings")
    (base / "files").mkdir()
    (base / "tmp").mkdir()
    for number, name in enumerate(NAMES):
        text = f"Text number {number} of a file with a name that attacks whoever shows it. {SAID}."
        (base / "files" / name).write_text(text)
    os.mkfifo(base / "files" / "pipe\x1b[2J.txt")
    (base / "password").write_text(SECRETS["password"] + "\n")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield _verbs(base, f"http://reader@127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _verbs(base: Path, url: str) -> Run:
    recipe = f"""
name: surroundings
sources:
  - {{name: files, uri: ./files}}
  - {{name: web, uri: "{url}", urls: [page, none], password: {{file: ./password}}, headers: {{X-Token: {{env: HEAD}}}}}}
prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}, admit: [{{path: nothing-like-this, encoding: cp1251}}]}}
workspace: ./workspace
"""
    (base / "sheaf.yaml").write_text(recipe)
    (base / "broken.yaml").write_text(recipe.replace("env: HEAD", "env: BROKEN"))
    (base / "inside.yaml").write_text(recipe.replace("reader@", "reader:mine-alone@"))
    surroundings = {
        **{"PATH": os.environ["PATH"], "HOME": str(base), "TMPDIR": str(base / "tmp"), "OMP_NUM_THREADS": "1"},
        **{"AWS_SECRET_ACCESS_KEY": SECRETS["environment"], "HEAD": SECRETS["header"]},
        "BROKEN": SECRETS["broken"] + "\nX: y",
    }
    verbs = {
        "prepare": ["prepare", "sheaf.yaml", "--debug"],
        "scan": ["scan", "sheaf.yaml"],
        "ledger": ["ledger", "sheaf.yaml", "--source", "files"],
        "fifo": ["ledger", "sheaf.yaml", "--reason", "not-a-file"],
        "broken": ["prepare", "broken.yaml", "--debug"],
        "inside": ["prepare", "inside.yaml", "--debug"],
    }
    said, codes = dict[str, str](), dict[str, int]()
    for name, words in verbs.items():
        command = [sys.executable, "-m", "sheaf", *words]
        done = subprocess.run(command, cwd=base, env=surroundings, capture_output=True, check=False)
        said[name], codes[name] = (done.stdout + done.stderr).decode("utf-8", "surrogateescape"), done.returncode
    return Run(base, said, codes)


def written(run: Run) -> Iterator[tuple[str, str]]:
    """Everything that the verbs wrote: (path, content as text), with what is packed in Parquet unpacked."""
    places = [run.folder / "workspace", run.folder / "tmp", run.folder / "scan.html"]
    for path in [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]:
        if path.is_file():
            yield str(path), path.read_bytes().decode("latin-1")
            if path.suffix == ".parquet":
                yield str(path), repr(pq.read_table(path).to_pylist())


def test_no_secret_is_in_anything_that_is_written_or_said(run: Run) -> None:
    assert any(SECRETS["header"] in asked and "Basic" in asked for asked in _Pages.asked), "the server must get them"
    everything = [*run.said.items(), *written(run)]
    assert any(path.endswith("records.parquet") for path, _ in everything)
    assert [(place, form) for place, text in everything for form in FORMS if form in text] == []
    assert not any("mine-alone" in text for _, text in everything)
    assert (run.codes["broken"], run.codes["inside"]) == (4, 2)
    assert "BROKEN" in run.said["broken"] and "holds a password" in run.said["inside"]


def test_what_an_item_says_is_in_its_records_only(run: Run) -> None:
    holds = {Path(path).name for path, text in written(run) if SAID in text}
    assert holds == {"records.parquet"}
    assert not any(SAID in text for text in run.said.values())


def test_names_that_attack_are_items_and_steer_no_terminal(run: Run) -> None:
    assert run.codes["prepare"] == run.codes["scan"] == run.codes["ledger"] == 0
    assert f"{len(NAMES) + 1}" in run.said["prepare"] and "not-a-file" in run.said["prepare"]
    assert "pipe\\x1b[2J.txt" in run.said["fifo"]
    assert [verb for verb, text in run.said.items() if STEERING.search(text)] == []
    assert "<script>x" not in (run.folder / "scan.html").read_text()
    assert not list(run.folder.rglob("pwned"))


def test_an_admit_rule_that_matches_nothing_says_so(run: Run) -> None:
    assert "no item matches the path nothing-like-this" in run.said["prepare"]


def test_nothing_is_left_in_the_temporary_folder(run: Run) -> None:
    assert list((run.folder / "tmp").iterdir()) == []
