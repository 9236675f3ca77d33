"""Personal data of a corpus: found in every kind of record, counted by source, masked where it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from sheaf import recipe_file
from sheaf.corpus import shards
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare import protect
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.pipeline import prepare
from sheaf.privacy import counts
from sheaf.report.build import render
from sheaf.report.facts import corpus_facts

CARD, KEY = "4111 1111 1111 1111", "ghp_" + "a1B2" * 9
LONG = "and then there is some more to say about the things that were said before. "


def messages(*said: str) -> list[dict[str, str]]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": s} for n, s in enumerate(said)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("protect")
    (base / "files").mkdir()
    for i in range(12):
        (base / "files" / f"{i}.txt").write_text(f"Note {i}. Write to ann{i}@x.org, {LONG}Call 1381234567{i % 10}!")
    (base / "files" / "secret.txt").write_text(f"The card {CARD} {LONG} and bob@x.org, the key {KEY}.")
    (base / "files" / "copy.txt").write_text(f"Note 1. Write to ann1@x.org, {LONG}Call 13812345671!")
    chats = [
        {"messages": messages(f"My address is carl{i}@y.org. {LONG}", f"Thank you, carl{i}@y.org. {LONG}")}
        for i in range(4)
    ]
    (base / "chats.jsonl").write_bytes(b"\n".join(map(orjson.dumps, chats)))
    rows = [
        {"prompt": f"Hello {i}, {LONG}", "chosen": LONG, "rejected": f"Ask dora{i}@z.org. {LONG}"} for i in range(3)
    ]
    (base / "preferences.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return base


def made(base: Path, privacy: dict[str, str], workspace: str) -> tuple[CorpusVersion, dict[str, Any]]:
    text = f"""
name: test
sources:
  - {{name: files, uri: ./files}}
  - {{name: chats, uri: ./chats.jsonl, map: openai}}
  - {{name: preferences, uri: ./preferences.jsonl, map: preference}}
prepare:
  privacy: {orjson.dumps(privacy).decode()}
  tokenizer: {{train: bpe, vocab_size: 400}}
workspace: ./{workspace}
"""
    recipe = recipe_file.loads(text, base)
    found = prepare(recipe, workers=1)
    return CorpusVersion.open(Path(recipe.workspace)), found


def trained(corpus: CorpusVersion) -> str:
    encoder = Encoder(corpus.tokenizer_path)
    files, documents = corpus.token_files(), corpus.documents
    ids = [files[s][o : o + n] for s, o, n in zip(documents.shard, documents.offset, documents.length, strict=True)]
    return "\n".join(encoder.decode(i.tolist()) for i in ids)


def test_what_is_masked_is_in_no_token_and_what_is_kept_is(base: Path) -> None:
    corpus, _ = made(base, {"email": "mask", "phone": "keep", "secret": "mask"}, "masked")
    text = trained(corpus)
    assert {"email", "secret"}.isdisjoint(counts(text)) and "@" not in text and KEY not in text
    assert text.count("[email]") == 12 + 1 + 8 and text.count("[secret]") == 1
    assert "Call 13812345671!" in text and CARD in text
    assert "My address is [email]." in text and "Thank you, [email]." in text
    assert "@" not in "".join(corpus.texts(range(len(corpus.documents))))


def test_a_record_with_a_kind_to_drop_goes_and_the_reason_names_the_kind(base: Path) -> None:
    corpus, found = made(base, {"email": "mask", "secret": "drop"}, "dropped")
    assert found["records"]["dropped"] == {"privacy:secret": 1}
    assert CARD not in trained(corpus)


def test_findings_are_counted_by_source_in_what_is_kept_and_in_all(base: Path) -> None:
    _, found = made(base, {"email": "mask", "secret": "drop"}, "counted")
    assert found["privacy"] == {
        "files": {
            "email": {"kept": 12, "all": 13},
            "phone": {"kept": 12, "all": 12},
            "card": {"kept": 0, "all": 1},
            "secret": {"kept": 0, "all": 1},
        },
        "chats": {"email": {"kept": 8, "all": 8}},
        "preferences": {"email": {"kept": 3, "all": 3}},
    }


def test_the_report_counts_findings_and_decisions_by_source_and_quotes_none(base: Path) -> None:
    corpus, _ = made(base, {"email": "mask", "secret": "drop"}, "counted")
    facts = corpus_facts(corpus)
    told = {(p.source, p.kind): (p.action, p.found, p.kept) for p in facts.personal}
    assert told[("files", "email")] == ("mask", 13, 12) and told[("files", "card")] == ("keep", 1, 0)
    assert told[("files", "secret")] == ("drop", 1, 0) and told[("chats", "email")] == ("mask", 8, 8)
    assert facts.decisions[:2] == (("files", "kept", 12), ("files", "privacy:secret", 1))
    page = render(facts, None)
    assert "<td>13</td><td>12</td>" in page and "privacy:secret" in page
    assert "@" not in page.partition("</style>")[2] and KEY not in page and CARD not in page


def test_a_changed_action_searches_nothing_again(base: Path) -> None:
    one, _ = made(base, {"email": "mask"}, "again")
    folders = {s: one.workspace.scores(s, protect.STAGE).stat().st_ino for s in one.shard_names}
    two, _ = made(base, {"email": "keep", "phone": "drop"}, "again")
    assert {s: two.workspace.scores(s, protect.STAGE).stat().st_ino for s in two.shard_names} == folders
    assert one.digest != two.digest


def test_findings_name_places_in_the_shard_s_texts(base: Path) -> None:
    corpus, _ = made(base, {"email": "mask"}, "places")
    found = 0
    for name in corpus.shard_names:
        texts = shards.read(corpus.workspace.shard(name), "records", ["text"])["text"].to_pylist()
        for f in protect.findings(corpus.workspace, name).to_pylist():
            piece = texts[f["row"]].encode()[f["start"] : f["end"]].decode()
            assert counts(piece) == {f["kind"]: 1}
            found += 1
    assert found == 13 + 12 + 1 + 1 + 8


def test_in_conversations_all_that_is_said_is_masked_and_who_speaks_is_not() -> None:
    call = {"id": "a@x.org", "type": "function", "function": {"name": "mail", "arguments": '{"to": "bob@x.org"}'}}
    chat = [{"role": "assistant", "content": "I write to bob@x.org", "tool_calls": [call], "weight": 1}]
    pair = {
        "prompt": messages("call +49 30 901820"),
        "chosen": messages("bob@x.org"),
        "rejected": messages("ann@x.org"),
    }
    column = pa.array([orjson.dumps(chat).decode(), "", orjson.dumps(pair).decode()], pa.large_string())
    first, none, second = protect.masked_messages(column, ["email"]).to_pylist()
    shown = orjson.loads(first)[0]
    assert shown["content"] == "I write to [email]" and shown["weight"] == 1 and shown["role"] == "assistant"
    assert shown["tool_calls"][0]["function"] == {"name": "mail", "arguments": '{"to": "[email]"}'}
    assert none == "" and shown["tool_calls"][0]["id"] == "a@x.org"
    assert orjson.loads(second)["rejected"][0]["content"] == "[email]"
    assert orjson.loads(second)["prompt"][0]["content"] == "call +49 30 901820"
    assert protect.masked_messages(column, []).to_pylist() == column.to_pylist()
