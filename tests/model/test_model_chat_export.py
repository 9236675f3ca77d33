"""An exported folder writes conversations out as they were trained, and `generate` of others stops where we do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import transformers
from model_shapes import random_model, small_config
from tokenizers import Tokenizer

from sheaf import recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.model.pretrained import ChatFormat, export_folder
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.pipeline import prepare
from sheaf.prepare.rendering import Chats, Rendering

CALL = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"ferry": "Łódź & <b>"}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
TALKS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief.\n\nAnd exact."},
            {"role": "user", "content": f"Why is ferry {n} late?  渡轮为什么晚点？"},
            {"role": "assistant", "content": f"The tide, {n}: it turns twice a day. 🌊\n"},
            {"role": "user", "content": "Always?"},
            {"role": "assistant", "content": "Twice a day."},
        ]
    }
    for n in range(20)
]
CALLING = {
    "messages": [
        {"role": "user", "content": "Where is the ferry?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"place": "here"}', "tool_call_id": "call-1"},
        {"role": "assistant", "content": "Here."},
    ]
}
# Its first line is indented, and it needs variables that a tokenizer may lack.
OWN = """  {% if bos_token + 'x' %}
{{ bos_token + '[' + eos_token + ']' }}
  {% endif %}
{% for m in messages %}
<|{{ m.role }}|>{{ m.content }}
{%- if m.role == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}
"""


def prepared(base: Path, prepare_more: str) -> CorpusVersion:
    (base / "talk").mkdir()
    (base / "talk" / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in [*TALKS, CALLING]))
    text = f"name: t\nsources: [{{name: talk, uri: ./talk, map: openai}}]\nprepare: {{{prepare_more}}}\n"
    prepare(recipe_file.loads(text, base), workers=1)
    return CorpusVersion.open(base / "workspace")


def given_tokenizer(base: Path, shared: Path) -> None:
    """A tokenizer of another model: its turns end with another token than its texts."""
    (base / "model").mkdir()
    tokenizer = Tokenizer.from_file(str(shared))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(base / "model" / "tokenizer.json"))
    (base / "model" / "tokenizer_config.json").write_bytes(orjson.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> CorpusVersion:
    return prepared(tmp_path_factory.mktemp("trained"), "tokenizer: {train: bpe, vocab_size: 400}")


@pytest.mark.parametrize("case", ["chatml", "a tokenizer without the template's tokens", "a given tokenizer"])
def test_transformers_gives_our_tokens_of_every_conversation(case: str, trained: CorpusVersion, tmp_path: Path) -> None:
    corpus = trained
    if case != "chatml":
        (tmp_path / "own.jinja").write_text(OWN)
        tokenizer = "tokenizer: {train: bpe, vocab_size: 400}"
        if case == "a given tokenizer":
            given_tokenizer(tmp_path, trained.tokenizer_path)
            tokenizer = "tokenizer: {from: ./model}"
        corpus = prepared(tmp_path, f"template: ./own.jinja, {tokenizer}")
    chat = ChatFormat.of(corpus.manifest["rendering"], corpus.tokenizer_path)
    assert chat is not None
    model = random_model(replace(small_config(), vocab_size=corpus.vocab_size))
    export_folder(model, tmp_path / "out", corpus.tokenizer_path, corpus.end_of_text, chat=chat)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Chats(Rendering.from_json(corpus.manifest["rendering"]), Encoder(corpus.tokenizer_path))
    for talk, tools in [*((t, None) for t in TALKS), (CALLING, [TOOL])]:
        known = orjson.loads(orjson.dumps(talk["messages"]))
        for message in known:  # transformers wants them as objects, as templates do
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = orjson.loads(call["function"]["arguments"])
        ids = ours.encode(talk["messages"], tools).ids.tolist()
        assert ids[-1] == corpus.end_of_text
        written = theirs.apply_chat_template(known, tools=tools, return_dict=False)
        assert written == (ids if written[-1] == corpus.end_of_text else ids[:-1])
    question = [{"role": "user", "content": "Why?"}]
    asked = theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert asked == ours.prompt(question).tolist()
    stops = transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    ends = ours.ends_of_turn()
    assert set(stops if isinstance(stops, list) else [stops]) == {corpus.end_of_text, *ends}


def test_without_conversations_no_template_is_written(trained: CorpusVersion, tmp_path: Path) -> None:
    assert ChatFormat.of(trained.manifest["rendering"] | {"template": ""}, trained.tokenizer_path) is None
    model = random_model(replace(small_config(), vocab_size=trained.vocab_size))
    export_folder(model, tmp_path / "out", trained.tokenizer_path, trained.end_of_text)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None
    shutil.rmtree(tmp_path / "out")
