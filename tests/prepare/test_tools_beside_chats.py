"""The tools that a conversation offers train with it: they are masked, counted and judged as what is said is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from in_process import InThisProcess

from sheaf import recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare

SECRET = "sk-proj-aB3dE5gH7jK9mN1pQ3sT5vX7zA2cD4fG6hJ8kL0n"
MESSAGES = [
    {"role": "user", "content": "Which tools do you have for the keeper of the lighthouse?"},
    {"role": "assistant", "content": "One that sends mail to the keeper of the lighthouse."},
]


def tools(name: str) -> list[Any]:
    argument = {"type": "string", "default": SECRET}
    about = {"name": name, "description": "mail to keeper@light.example.org", "parameters": {"id": argument}}
    return [{"type": "function", "function": about}]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sheaf.engine.make", lambda *_: InThisProcess())
    rows = [{"messages": MESSAGES, "tools": tools("mail")}, {"messages": MESSAGES[:1] + MESSAGES[1:] * 2}]
    (tmp_path / "chats.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return tmp_path


def run(base: Path, **privacy: str) -> dict[str, Any]:
    said = {
        "name": "tools",
        "sources": [{"name": "chats", "uri": "./chats.jsonl", "map": "openai"}],
        "prepare": {"privacy": privacy, "tokenizer": {"train": "bpe", "vocab_size": 300}},
    }
    return prepare(recipe_file.loads(orjson.dumps(said).decode(), base))


def test_tools_are_masked_where_they_become_tokens(base: Path) -> None:
    found = run(base, secret="mask", email="mask")
    corpus = CorpusVersion.open(base / "workspace")
    written = "".join(corpus.texts(range(len(corpus.documents))))
    assert "mail to [email]" in written and '"default": "[secret]"' in written
    assert found["privacy"]["chats"] == {"email": {"kept": 1, "all": 1}, "secret": {"kept": 1, "all": 1}}


def test_a_secret_in_a_tool_drops_its_conversation(base: Path) -> None:
    assert run(base, secret="drop")["records"]["dropped"] == {"privacy:secret": 1}


def test_other_tools_make_another_record(base: Path) -> None:
    first = run(base)
    rows = [{"messages": MESSAGES, "tools": tools(name)} for name in ("mail", "call", "call")]
    (base / "chats.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    second = run(base)
    assert (second["records"]["kept"], second["records"]["duplicate"]) == (2, 1)
    (base / "chats.jsonl").write_bytes((base / "chats.jsonl").read_bytes().replace(b"mail", b"post"))
    assert run(base)["corpus"] not in (first["corpus"], second["corpus"])
