"""Near duplicates through `prepare`: conversations and preferences are compared whole, and what stays is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare

RECIPE = """
name: test
sources:
  - {name: talk, uri: ./talk, map: openai}
  - {name: better, uri: ./better, map: preference}
prepare:
  dedup: {near: 0.8, max_loss: 1}
  tokenizer: {train: bpe, vocab_size: 400}
"""


def words(seed: int, n: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join(f"word{rng.randrange(500)}" for _ in range(n))


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def preference(chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": words(9, 20), "chosen": chosen, "rejected": rejected}


def prepared(base: Path, rows: dict[str, list[dict[str, Any]]]) -> CorpusVersion:
    for source, those in rows.items():
        (base / source).mkdir()
        (base / source / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in those))
    prepare(recipe_file.loads(RECIPE, base), workers=1, console=Silent())
    return CorpusVersion.open(base / "workspace")


def test_conversations_are_compared_whole(tmp_path: Path) -> None:
    corpus = prepared(
        tmp_path,
        {
            "talk": [
                talk(words(1), words(2)),
                talk(words(1), f"{words(2)} Yes."),  # nearly the same
                talk(words(1), words(3)),  # the same question, another answer
            ],
            "better": [
                preference(words(4), words(5)),
                preference(f"{words(4)} No.", words(6)),  # the text of a preference is that with the better answer
                preference(words(7), words(5)),
            ],
        },
    )
    decisions = corpus.decisions().to_pylist()
    dropped = [d for d in decisions if d["reason"] == "near-duplicate"]
    kept = {d["id"]: d["source"] for d in decisions if d["kept"]}
    assert len(decisions) == 6
    assert sorted(d["source"] for d in dropped) == [0, 1]
    assert all(kept[d["of"]] == d["source"] for d in dropped)
