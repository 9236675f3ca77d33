"""A source's map through `prepare`: kinds and messages in the corpus, rows that do not fit in the ledger, items read
again when the map changes and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from sheaf import recipe_file
from sheaf.corpus import lineage, shards
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

SAID = "Because the tide turns twice a day, and nobody asked the ferry about it, number {}."


def recipe_for(base: Path, map: str) -> Recipe:
    text = f"""
name: test
sources:
  - {{name: talk, uri: ./talk{map}}}
  - {{name: notes, uri: ./notes}}
prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}}}
"""
    return recipe_file.loads(text, base)


def make(base: Path) -> None:
    rows: list[Any] = [{"q": f"Why is the ferry late, {i}?", "a": SAID.format(i), "n": i} for i in range(5)]
    rows[3] = {"q": "Nobody knows."}
    (base / "talk").mkdir()
    (base / "talk" / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    (base / "notes").mkdir()
    (base / "notes" / "note.txt").write_text("A note that has nothing to do with any of the ferries. " * 3)


MAP = ", map: {kind: chat, user: q, assistant: a}"


def records(corpus: CorpusVersion) -> list[dict[str, Any]]:
    """Of the corpus' shards, those of the source `talk`."""
    found: list[dict[str, Any]] = []
    for number in range(len(corpus.shard_names)):
        table = shards.read(corpus.shard_path(number), "records", ["kind", "text", "messages", "meta"])
        found += [row for row in table.to_pylist() if "ferries" not in row["text"]]
    return found


def test_a_mapped_source_gives_conversations_and_its_odd_rows_are_in_the_ledger(tmp_path: Path) -> None:
    make(tmp_path)
    prepare(recipe_for(tmp_path, MAP), workers=1)
    corpus = CorpusVersion.open(tmp_path / "workspace")
    found = records(corpus)
    assert len(found) == 4
    assert {r["kind"] for r in found} == {"chat"}
    assert all([m["role"] for m in orjson.loads(r["messages"])] == ["user", "assistant"] for r in found)
    (lost,) = corpus.quarantine().to_pylist()
    assert (lost["reason"], lost["detail"]) == ("bad-row", "there is no column 'a'")


def test_a_changed_map_reads_its_own_source_again_and_no_other(tmp_path: Path) -> None:
    make(tmp_path)
    prepare(recipe_for(tmp_path, ""), workers=1)
    mapped = prepare(recipe_for(tmp_path, MAP), workers=1)
    again = prepare(recipe_for(tmp_path, MAP), workers=1)
    assert mapped["items"]["read"] == 1
    assert again["items"]["read"] == 0


def test_a_conversations_text_is_proved_by_reading_its_origin_again(tmp_path: Path) -> None:
    make(tmp_path)
    prepare(recipe_for(tmp_path, MAP), workers=1)
    corpus = CorpusVersion.open(tmp_path / "workspace")
    texts: set[str] = set()
    for number in range(len(corpus.documents)):
        for origin in lineage.origins(corpus, number):
            texts.add(lineage.reread(corpus, origin))
    assert {t for t in texts if t.startswith("User: ")} == {
        f"User: Why is the ferry late, {i}?\n\nAssistant: {SAID.format(i)}" for i in (0, 1, 2, 4)
    }
