"""A small mixed corpus that asks for every stage: kinds of files, copies, near ones, personal data, exam questions."""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
from pathlib import Path

from sheaf import recipe_file
from sheaf.recipe import Recipe

WORDS = [
    "the",
    "ledger",
    "of",
    "a",
    "source",
    "keeps",
    "every",
    "record",
    "and",
    "its",
    "origin",
    "so",
    "that",
    "no",
    "shard",
    "or",
    "token",
    "of",
    "the",
    "corpus",
    "is",
    "lost",
]
RECIPE = """
name: mixed
seed: 3
sources:
  - {name: pages, uri: ./pages}
  - {name: rows, uri: ./rows}
  - {name: help, uri: "sqlite:///./help.db", query: "SELECT id, body FROM ticket", text: "{body}"}
  - {name: chats, uri: ./chats, map: openai}
prepare:
  filters: ["score.words > 8"]
  dedup: {exact: true, near: 0.8, max_loss: 0.9}
  privacy: {email: mask, card: drop}
  decontaminate: ["./exam.jsonl"]
  tokenizer: {train: bpe, vocab_size: 400}
"""


def make(folder: Path, shuffle: int = 0) -> None:
    """The same items whatever `shuffle` is; it changes the order in which the files come to be."""
    rng = random.Random(1)
    files: list[tuple[str, bytes]] = []
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(30, 90))) for _ in range(40)]
    for n, text in enumerate(texts):
        files.append((f"pages/{n:02d}.txt", f"Page {n}. {text}\n".encode()))
    files.append(("pages/copy.txt", f"Page 3. {texts[3]}\n".encode()))
    near = f"Page 4. {texts[4]}".split()
    near[len(near) // 2] = "otherwise"
    files.append(("pages/near.txt", " ".join(near).encode() + b"\n"))
    rows = [{"text": f"{' '.join(rng.choices(WORDS, k=40))} write to someone{n}@example.org"} for n in range(30)]
    rows[5]["text"] += " card 4111 1111 1111 1111"
    rows[6]["text"] = "short"
    exam = " ".join(f"question{n}" for n in range(20))
    rows[7]["text"] = f"Among other words: {exam} and so on."
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    files += [
        ("rows/rows.jsonl", lines + b'\n{"text": "broken\n'),
        ("rows/more.jsonl.gz", gzip.compress(lines, mtime=0)),
    ]
    turns = [
        [{"role": "user", "content": f"What is record {n}?"}, {"role": "assistant", "content": texts[n]}]
        for n in range(12)
    ]
    files.append(("chats/c.jsonl", b"\n".join(json.dumps({"messages": t}).encode() for t in turns) + b"\n"))
    files.append(("exam.jsonl", json.dumps({"text": exam}).encode() + b"\n"))
    random.Random(shuffle).shuffle(files)
    for name, data in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with sqlite3.connect(folder / "help.db") as db:
        db.execute("CREATE TABLE ticket (id INTEGER PRIMARY KEY, body TEXT)")
        db.executemany(
            "INSERT INTO ticket (body) VALUES (?)", [(" ".join(rng.choices(WORDS, k=25)),) for _ in range(30)]
        )
    (folder / "sheaf.yaml").write_text(RECIPE)


def recipe(folder: Path, workspace: str) -> Recipe:
    return recipe_file.load(folder / "sheaf.yaml", [f"workspace={workspace}"])
