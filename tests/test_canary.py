"""Secrets and personal data that lie in sources are in nothing that is written or said, but for the store of records.

What is masked is not in tokens either. Paths are addresses, by which things are found again: they are told as they are.
"""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.encoder import Encoder

RNG = random.Random(4711)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
PLACES = (
    *("text", "row", "meta", "said", "tool", "rejected", "role", "line", "broken", "late", "near"),
    *("exam", "short", "query", "archive", "html"),
)
CANARIES = {place: "ghp_" + "".join(RNG.choices(LETTERS, k=36)) for place in PLACES}
CANARIES |= {
    "card": "4111 1111 1111 1111",
    "mail": "jane.canary@example.org",
    "iban": "DE89 3704 0044 0532 0130 00",
    "phone": "+49 30 901820",
    "identity": "11010519491231002X",
    "pem": "-----BEGIN RSA PRIVATE KEY-----\nMIIEcanary4711\n-----END RSA PRIVATE KEY-----",
}
WORDS = ["sheaf", "gathers", "scattered", "data", "from", "many", "places", "and", "trains", "a", "model", "on", "it"]
RECIPE = """\
name: canary
sources:
  - {name: files, uri: ./files}
  - {name: rows, uri: ./rows, text: body}
  - {name: chats, uri: ./chats.jsonl, map: openai}
  - {name: pairs, uri: ./pairs.jsonl, map: preference}
prepare:
  privacy: {email: mask, phone: mask, card: mask, iban: mask, national-id: mask, secret: mask}
  dedup: {near: 0.7, max_loss: 1}
  filters: ["score.words > 3"]
  decontaminate: ["./evals/*.jsonl"]
  tokenizer: {train: bpe, vocab_size: 400}
model: {hidden_size: 32, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 64}
train: {sequence_length: 64, batch_tokens: 256, budget: {steps: 3}, precision: fp32, compile: "off"}
"""


def some(n: int) -> str:
    return " ".join(RNG.choice(WORDS) for _ in range(n))


def scatter(base: Path) -> None:
    c = CANARIES
    for name in ("files", "rows", "evals"):
        (base / name).mkdir()
    for i in range(8):
        (base / "files" / f"{i}.txt").write_text(some(80))
    (base / "files" / "text.txt").write_text(
        f"{some(20)} {c['text']} {some(20)} {c['card']}, {c['mail']}; {c['iban']}."
        f" {c['phone']} {some(9)} {c['identity']}\n{c['pem']}\n"
    )
    long = some(120)
    (base / "files" / "near1.txt").write_text(f"{c['near']} {long}")
    (base / "files" / "near2.txt").write_text(f"{c['near']} {long} again")
    (base / "files" / "dropped.txt").write_text(f"{c['short']}")
    (base / "files" / "late.txt").write_text(some(330)[:2030] + f" {c['late']}")
    (base / "files" / "page.html").write_text(f"<html><body><p>{some(30)} {c['html']}</p></body></html>")
    with (base / "rows" / "table.csv").open("w", newline="") as f:
        rows = [["id", "body", "note"], [1, f"{some(30)} {c['row']}", "x"], [2, some(30), f"note {c['meta']}"]]
        csv.writer(f).writerows(rows)
    (base / "rows" / "bad.jsonl").write_text(
        orjson.dumps({"body": some(20)}).decode() + f'\n{{"body": "{c["line"]}\n' + f'{{"body": "{c["broken"]}", }}\n'
    )
    with zipfile.ZipFile(base / "files" / "archive.zip", "w") as archive:
        archive.writestr("inside.txt", f"{some(30)} {c['archive']}")
    question = some(30)
    (base / "evals" / "q.jsonl").write_bytes(orjson.dumps({"q": f"{question} {c['exam']}"}) + b"\n")
    (base / "files" / "exam.txt").write_text(f"{some(10)} {question} {c['exam']}")
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": f'{{"k": "{c["tool"]}"}}'}}
    chats = [
        [("user", some(9)), ("assistant", f"{c['said']} {some(20)}")],
        [("user", some(9)), (c["role"], some(9))],
    ]
    lines = [{"messages": [{"role": r, "content": t} for r, t in chat]} for chat in chats]
    lines.append(
        {
            "messages": [
                {"role": "user", "content": some(20)},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
        }
    )
    (base / "chats.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    pair = {"prompt": some(20), "chosen": some(20), "rejected": f"{some(5)} {c['rejected']}"}
    (base / "pairs.jsonl").write_bytes(orjson.dumps(pair))
    (base / "sheaf.yaml").write_text(RECIPE)


VERBS = {
    "scan": "scan",
    "prepare": "prepare --json",
    "ledger": "ledger --item . --json",
    "ledger of rows": "ledger --source rows --show",
    "ledger of chats": "ledger --source chats --show",
    "ledger of files": "ledger --source files --show --json",
    "show": "show --dropped near-duplicate --json",
    "train": "train --json",
    "report": "report",
    "trace": "trace --step 1 --json",
    "show of filters": "show --dropped filter",
    "what if": "show --what-if --json",
    "page": "show --report workspace/page.html",
    "forget": "forget --matching canary --json",
    "broken exam": "prepare prepare.decontaminate=['./rows/bad.jsonl'] --debug",
    "what is no item": f"trace --item {CANARIES['query']}",
}


@dataclass
class Run:
    base: Path
    said: dict[str, str]
    codes: dict[str, int]


SCRIPT = """
import json, sys
from sheaf.cli import main
if __name__ == "__main__":
    for words in json.loads(sys.argv[1]):
        code = main(words)
        sys.stderr.flush()
        print(f"\\n=== {code}", flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All verbs in one process: starting one for each is most of the time they take."""
    base = tmp_path_factory.mktemp("canary")
    scatter(base)
    (base / "verbs.py").write_text(SCRIPT)
    command = [sys.executable, "verbs.py", orjson.dumps([words.split() for words in VERBS.values()]).decode()]
    done = subprocess.run(
        command,
        cwd=base,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=True,
    )
    found, said = Run(base, {}, {}), ""
    verbs = iter(VERBS)
    for line in done.stdout.split("\n"):
        if line.startswith("=== "):
            verb = next(verbs)
            found.said[verb], found.codes[verb], said = said, int(line[4:]), ""
        else:
            said += f"{line}\n"
    return found


def test_every_verb_did_its_work(run: Run) -> None:
    expected = {name: 0 for name in VERBS} | {"broken exam": 3}
    assert run.codes == expected, {n: run.said[n][-600:] for n in VERBS if run.codes[n] != expected[n]}
    assert "[secret]" in run.said["ledger of rows"] and "[secret]" in run.said["ledger of files"]
    assert "evals/q.jsonl row 1" in run.said["ledger of files"]
    assert "by '[secret]', which is no known role" in run.said["ledger of chats"]


def leaks(text: str) -> set[str]:
    return {place for place, value in CANARIES.items() if value in text or orjson.dumps(value)[1:-1].decode() in text}


def test_nothing_that_is_said_holds_one(run: Run) -> None:
    said = {name: leaks(text) for name, text in run.said.items()}
    said["what is no item"] -= {"query"}  # the user's own words
    assert not any(said.values()), said


def written(base: Path) -> Iterator[tuple[str, str]]:
    """Every file of the workspace with what is in it, but for the store of records."""
    for path in sorted((base / "workspace").rglob("*")):
        name = str(path.relative_to(base / "workspace"))
        if not path.is_file() or (name.startswith("shards/") and path.name == "records.parquet"):
            continue
        if path.suffix == ".parquet":
            yield name, orjson.dumps(pq.read_table(path).to_pylist(), default=lambda b: b.hex()).decode()
        else:
            yield name, path.read_bytes().decode("utf-8", "replace")


def test_nothing_that_is_written_holds_one(run: Run) -> None:
    files = dict(written(run.base))
    assert {
        "manifest.json",
        "ledger.parquet",
        "quarantine.parquet",
        "journal.jsonl",
        "report.html",
        "page.html",
        "hits.parquet",
    } <= {Path(name).name for name in files}
    found = {name: leaks(text) for name, text in files.items() if leaks(text)}
    assert not found


def test_no_token_holds_one_and_marks_stand_there(run: Run) -> None:
    corpus = CorpusVersion.open(run.base / "workspace")
    encoder = Encoder(corpus.tokenizer_path)
    text = "\n".join(encoder.decode(np.asarray(ids).tolist()) for ids in corpus.token_files())
    assert not leaks(text)
    marks = [f"[{kind}]" for kind in ("secret", "card", "email", "iban", "phone", "national-id")]
    assert all(mark in text for mark in marks)


def test_the_store_holds_them_so_this_test_can_fail(run: Run) -> None:
    stored = ""
    for path in (run.base / "workspace" / "shards").rglob("records.parquet"):
        stored += orjson.dumps(pq.read_table(path).to_pylist(), default=lambda b: b.hex()).decode()
    missing = {"line", "broken", "role", "query"}
    assert leaks(stored) == set(CANARIES) - missing
