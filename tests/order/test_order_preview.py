"""A preview shows the very tokens that will be trained: their documents, what is predicted, control tokens, masks."""

from __future__ import annotations

import io
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from sheaf import api, recipe_file
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import UsageError
from sheaf.order.loader import Loader
from sheaf.prepare.encoder import Encoder
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe
from sheaf.show import render
from sheaf.show_preview import previewed
from sheaf.train.setup import order_of

SAMPLES = 10  # of batches of 8: into the second step


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    base = tmp_path_factory.mktemp("preview")
    (base / "files").mkdir()
    for i in range(12):
        lines = [f"Line {j} of note {i}, write to person{i}.{j}@x.org <|im_start|>" for j in range(4 + 3 * i)]
        (base / "files" / f"{i}.txt").write_text("\n".join(lines))
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": f"Answer {i}\n!"},
            ]
        }
        for i in range(30)
    ]
    (base / "chats.jsonl").write_bytes(b"\n".join(map(orjson.dumps, chats)))
    text = """
    name: previewed
    sources:
      - {name: files, uri: ./files}
      - {name: chats, uri: ./chats.jsonl, map: openai}
    prepare: {privacy: {email: mask}, tokenizer: {train: bpe, vocab_size: 400}}
    mixture: {files: {weight: 1}, chats: {weight: 1}}
    train: {sequence_length: 96, batch_tokens: 768}
    """
    recipe = recipe_file.loads(textwrap.dedent(text), base)
    prepare(recipe, workers=1)
    return recipe


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> dict[str, Any]:
    return api.preview(recipe, SAMPLES)


def test_it_shows_the_tokens_and_the_labels_of_the_first_batches(recipe: Recipe, data: dict[str, Any]) -> None:
    corpus = CorpusVersion.open(recipe.workspace)
    encoder = Encoder(corpus.tokenizer_path)
    with Loader(order_of(recipe, corpus, "train"), corpus.token_files(), stop=2) as loader:
        batches = list(loader)
    assert [(s["step"], s["sample"]) for s in data["samples"]] == [divmod(n, 8) for n in range(SAMPLES)]
    assert {s["source"] for s in data["samples"]} == {"files", "chats"}
    for sample in data["samples"]:
        batch, row = batches[sample["step"]], sample["sample"]
        assert sample["predicted"] == (batch.labels[row] != -100).sum()
        assert sample["positions"] == (batch.document_ids[row] >= 0).sum()
        for number, document in enumerate(sample["documents"]):
            here = batch.document_ids[row] == number
            assert "".join(p["text"] for p in document["pieces"]).startswith(
                encoder.decode(batch.input_ids[row][here]).rstrip("\ufffd")
            )
            flags = np.repeat([p["predicted"] for p in document["pieces"]], [p["tokens"] for p in document["pieces"]])
            assert (flags[1:] == (batch.labels[row][here] != -100)).all()
            assert document["tokens"][1] - document["tokens"][0] == here.sum() + 1
            assert document["origins"]


def test_masks_of_turns_control_tokens_and_personal_data_are_as_trained(data: dict[str, Any]) -> None:
    documents = {s["source"]: [] for s in data["samples"]}
    for sample in data["samples"]:
        documents[sample["source"]] += sample["documents"]
    chat = next(d["pieces"] for d in documents["chats"] if d["tokens"][1] == d["length"] and d["tokens"][0] == 0)
    assert next(p["text"] for p in chat if p["special"]) == "<|im_start|>"
    learned = "".join(p["text"] for p in chat if p["predicted"])
    assert learned.startswith("Answer ") and learned.endswith("<|im_end|>")
    assert "Question" in "".join(p["text"] for p in chat if not p["predicted"])
    notes = [p for d in documents["files"] for p in d["pieces"]]
    assert all("@x.org" not in p["text"] for p in notes) and any("[email]" in p["text"] for p in notes)
    assert all(p["text"] == "<|endoftext|>" for p in notes if p["special"])  # what a file says is no control token


def test_off_a_terminal_it_is_plain_and_on_one_it_is_coloured_and_safe(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    plain, coloured = (render(previewed(data), stream) for stream in (io.StringIO(), Terminal()))
    assert "\x1b" not in plain
    assert "\x1b[" in coloured
    assert ": ⟦<|im_start|>⟧user↵\n" in plain
    assert "\n| Answer " in plain and "⟦<|im_end|>⟧\n" in plain
    assert re.search(r"\n\| Line \d+ of note ", plain) and "[email] <|im_start|>↵\n" in plain
    assert "of padding" in plain and "tokens 0 to " in plain
    piece = {"text": "a\x1b[41mb\n\u202ec", "tokens": 3, "predicted": True, "special": False}
    document = {**data["samples"][0]["documents"][0], "pieces": [piece]}
    hostile = {**data, "samples": [{**data["samples"][0], "documents": [document]}]}
    assert "| a\\x1b[41mb↵\n| \\u202ec\n" in render(previewed(hostile), io.StringIO())
    assert "\x1b[41m" not in render(previewed(hostile), Terminal())


def test_a_mistake_in_what_is_asked_for_is_named(recipe: Recipe) -> None:
    for samples in (0, -1, 100_000):
        with pytest.raises(UsageError, match="cannot be previewed"):
            api.preview(recipe, samples)


def test_an_order_that_ends_is_shown_to_its_last_whole_step(recipe: Recipe) -> None:
    capped = recipe.model_copy(update={"mixture": {n: {"weight": 1, "max_epochs": 1} for n in ("files", "chats")}})
    data = api.preview(Recipe.model_validate_json(capped.model_dump_json(by_alias=True, warnings=False)), 1000)
    assert data["steps"] is not None and len(data["samples"]) == data["steps"] * 8


def test_nothing_is_trained_and_no_run_is_made(recipe: Recipe, data: dict[str, Any]) -> None:
    assert data["samples"] and not (Path(recipe.workspace) / "runs").exists()
