"""What was trained masked is shown masked, verified through the masks, and leads back to the bytes behind a mark."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import orjson
import pytest

from sheaf import recipe_file
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.pipeline import prepare
from sheaf.privacy import counts, masked_text
from sheaf.train import launch
from sheaf.train.trace import trace_run

STEPS = 8
WORDS = [
    "läuft",
    "auf",
    "der",
    "Straße",
    "and",
    "on",
    "the",
    "road",
    "数据",
    "with",
    "some",
    "more",
    "words",
    "between",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("masked")
    (base / "files").mkdir()
    for i in range(20):
        lines = [
            f"{' '.join(WORDS[j % 9 :])} and person{i}.{j}@x.org or 1381234{i:02d}{j:02d}, I said." for j in range(12)
        ]
        (base / "files" / f"{i}.txt").write_text("\n".join(lines))
    chats = [
        {
            "messages": [
                {"role": r, "content": f"{who}{i}@y.org {' '.join(WORDS)}"}
                for r, who in (("user", "a"), ("assistant", "b"))
            ]
        }
        for i in range(10)
    ]
    (base / "chats.jsonl").write_bytes(b"\n".join(map(orjson.dumps, chats)))
    text = f"""
    name: traced
    sources:
      - {{name: files, uri: ./files}}
      - {{name: chats, uri: ./chats.jsonl, map: openai}}
    prepare: {{privacy: {{email: mask}}, tokenizer: {{train: bpe, vocab_size: 400}}}}
    model: {{hidden_size: 32, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 64}}
    train: {{sequence_length: 64, batch_tokens: 512, budget: {{steps: {STEPS}}}, precision: fp32, compile: "off"}}
    """
    recipe = recipe_file.loads(textwrap.dedent(text), base)
    prepare(recipe, workers=1)
    result = launch.train(recipe, CorpusVersion.open(Path(recipe.workspace)), nproc=1, console=Silent())
    return Path(result["run"])


@pytest.fixture(scope="module")
def documents(run: Path) -> list[dict[str, Any]]:
    steps = [trace_run(run, step, verify=True) for step in range(STEPS)]
    return [d for step in steps for s in step["samples"] for d in s["documents"]]


def test_every_origin_is_verified_and_no_text_shows_what_was_masked(documents: list[dict[str, Any]]) -> None:
    assert all(o["verified"] is True for d in documents for o in d["origins"])
    assert all("email" not in counts(d["text"]) for d in documents)
    assert any("[email]" in d["text"] for d in documents)
    assert any("phone" in counts(d["text"]) for d in documents)


def test_a_span_of_masked_text_names_the_source_bytes_it_was_made_of(documents: list[dict[str, Any]]) -> None:
    seen = 0
    for document in documents:
        for origin in document["origins"]:
            if "span" not in origin:
                continue
            start, end = origin["span"]
            data = Path(origin["uri"]).read_bytes()[start:end].decode("utf-8", "ignore")
            shown = document["text"]
            first, last = shown.find("[email]"), shown.rfind("[email]")
            if first >= 0:
                assert shown[first : last + len("[email]")] in masked_text(data, {"email"}).text
                seen += 1
    assert seen > 10


def test_a_conversation_is_shown_as_its_template_wrote_it(documents: list[dict[str, Any]]) -> None:
    chats = [d for d in documents if any(o["source"] == "chats" for o in d["origins"])]
    whole = [d for d in chats if d["tokens"][0] == 0]
    assert whole and all(d["text"].startswith("<|im_start|>user\n[email]") for d in whole)


def test_a_source_that_says_something_else_now_is_not_verified(run: Path, documents: list[dict[str, Any]]) -> None:
    origin = next(o for d in documents for o in d["origins"] if o["source"] == "files")
    path = Path(origin["uri"])
    path.write_text(path.read_text().replace("I said", "I sang"))
    again = [trace_run(run, step, verify=True) for step in range(STEPS)]
    shown = [
        o for t in again for s in t["samples"] for d in s["documents"] for o in d["origins"] if o["uri"] == str(path)
    ]
    assert shown and not any(o["verified"] for o in shown)
