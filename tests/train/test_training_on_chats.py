"""Training and evaluation where only some tokens are to be predicted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from training_corpus import make_corpus, make_recipe

from sheaf import api, api_objects, recipe_file
from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.vocabulary import Vocabulary
from sheaf.errors import DataRefused, UsageError
from sheaf.order.loader import Loader
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import alone
from sheaf.prepare.encoder import Encoder
from sheaf.recipe import Layout
from sheaf.train import journal
from sheaf.train.checkpoint import checkpoint_of, load_model
from sheaf.train.evaluate import evaluate, evaluate_run
from sheaf.train.launch import train
from sheaf.train.learner import tensors
from sheaf.train.setup import order_of


def test_a_run_predicts_and_counts_only_what_is_to_be_predicted(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, chats=True)
    recipe = make_recipe(tmp_path, budget={"steps": 4})
    result = train(recipe, corpus, console=Silent())
    lines = journal.read(Path(result["run"]))
    order = order_of(recipe, corpus, "train")
    with Loader(order, corpus.token_files(), stop=4) as loader:
        expected = [(int((b.labels != -100).sum()), int((b.document_ids >= 0).sum())) for b in loader]
    assert [line["valid_tokens"] for line in lines] == [valid for valid, _ in expected]
    assert all(valid < inputs for valid, inputs in expected)
    assert result["tokens"] == sum(valid for valid, _ in expected)
    assert all(0 <= line["padding"] < 0.3 for line in lines)
    assert all(4 < line["loss"] < 7 for line in lines)  # ln 320 = 5.8: the mean is over what is predicted


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, chats=True)
    recipe = make_recipe(tmp_path, budget={"steps": 3})
    one, two = (journal.read(Path(train(recipe, corpus, nproc=n, console=Silent())["run"])) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert (a["valid_tokens"], a["samples"]) == (b["valid_tokens"], b["samples"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_steps_micro_batches_and_ranks_that_predict_nothing_change_nothing(tmp_path: Path, ranks: int) -> None:
    corpus = make_corpus(tmp_path, said=range(3, 30_000, 997))  # about one in two steps
    recipe = make_recipe(tmp_path, budget={"steps": 8}, micro_batch_tokens=64)
    one, some = (journal.read(Path(train(recipe, corpus, nproc=n, console=Silent())["run"])) for n in (1, ranks))
    assert {line["valid_tokens"] for line in one} >= {0, 1}
    for a, b in zip(one, some, strict=True):
        assert (a["valid_tokens"], a["samples"]) == (b["valid_tokens"], b["samples"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert (a["valid_tokens"] > 0) == (a["loss"] > 0) == (a["grad_norm"] > 0)


def test_a_budget_of_tokens_reaches_over_steps_that_predict_nothing(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, said=[2_500])
    result = train(make_recipe(tmp_path, budget={"tokens": 1}, held_out=0), corpus, console=Silent())
    assert result["steps"] > 1


def test_a_held_out_part_that_predicts_nothing_is_not_evaluated(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, said=[2_500])
    recipe = make_recipe(tmp_path, budget={"steps": 1})
    assert train(recipe, corpus, console=Silent())["validation_loss"] is None
    with pytest.raises(DataRefused, match="to be predicted"):
        evaluate_run(next((tmp_path / "runs").iterdir()))


def test_a_corpus_that_predicts_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="nothing to predict"):
        train(make_recipe(tmp_path, budget={"tokens": 1000}), make_corpus(tmp_path, said=[]), console=Silent())


def test_the_evaluation_is_of_what_is_to_be_predicted(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, chats=True)
    recipe = make_recipe(tmp_path, budget={"steps": 1}, held_out=0.1)
    run = Path(train(recipe, corpus, console=Silent())["run"])
    model, _ = load_model(run, None, torch.float32)
    order = order_of(recipe, corpus, "held_out")
    values = checkpoint_of(run)[0].values()
    spread = Spread(model.config, torch.float32, Mesh(alone(), Layout()), How(), values)
    got = evaluate(spread, corpus, order, corpus.token_files(), micro_samples=4)
    nats, count = 0.0, 0
    with Loader(order, corpus.token_files()) as loader, torch.no_grad():
        for batch in loader:
            (ids, positions, documents), labels = tensors(batch, torch.device("cpu"))
            logits = (model(ids, positions, documents) @ model.head_weight.T).float()
            nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
            count += int((labels != -100).sum())
    assert got["tokens"] == count < int(corpus.documents.length.sum())
    assert got["loss"] == pytest.approx(nats / count, rel=1e-5)
    d, losses = corpus.documents, corpus.loss_files()
    numbers = np.unique(order.pack.run_document)
    charged = sum(losses[d.shard[n]] is None or losses[d.shard[n]][d.offset[n]] > 0 for n in numbers)
    spoken = [
        n
        for n in numbers
        if losses[d.shard[n]] is None or losses[d.shard[n]][d.offset[n] + 1 :][: d.length[n] - 1].any()
    ]
    assert got["bytes"] == corpus.text_bytes(np.array(spoken))
    bits = (nats + charged * math.log(corpus.vocab_size)) / math.log(2) / got["bytes"]
    assert got["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_a_prompt_is_written_out_as_a_users_turn(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Ferry {i}?"},
                {"role": "assistant", "content": f"Late, {i}, as it was every day since."},
            ]
        }
        for i in range(30)
    ]
    (tmp_path / "talk.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    recipe = recipe_file.loads(
        """
name: test
sources: [{name: talk, uri: ., include: ["talk.jsonl"], map: openai}]
prepare: {tokenizer: {train: bpe, vocab_size: 300}}
model: {preset: tiny, hidden_size: 48, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 96}
train: {sequence_length: 64, batch_tokens: 256, budget: {steps: 2}, held_out: 0, compile: "off"}
""",
        tmp_path,
    )
    run = api.train(recipe, workers=1)
    corpus = run.corpus()
    encoder = Encoder(corpus.tokenizer_path)
    ids, ends = api_objects._as_user(run.vocabulary(), "Ferry 7?<|im_end|>")
    assert encoder.decode(ids) == "<|im_start|>user\nFerry 7?<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(encoder.control_ids["<|im_end|>"]) == 1 and ends == [encoder.control_ids["<|im_end|>"]]
    said = "".join(run.generate("Ferry 7?", chat=True, max_tokens=20, temperature=0))
    assert said == "".join(run.generate("Ferry 7?", chat=True, max_tokens=20, temperature=0))
    assert said != "".join(run.generate("Ferry 7?", max_tokens=20, temperature=0))
    assert (run.export(tmp_path / "out") / "chat_template.jinja").read_text() == corpus.manifest["rendering"][
        "template"
    ]


def test_a_template_that_takes_no_user_alone_is_said_to_be_the_reason(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% if messages[0].role != 'system' %}{{ raise_exception('Who am I?') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    talk = [("system", "Be brief."), ("user", "Late?"), ("assistant", "Late, as it was every day since.")]
    row = {"messages": [{"role": role, "content": words} for role, words in talk]}
    (tmp_path / "talk.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    recipe = recipe_file.loads(
        """
name: test
sources: [{name: talk, uri: ., include: ["talk.jsonl"], map: openai}]
prepare: {tokenizer: {train: bpe, vocab_size: 300}, template: ./t.jinja}
""",
        tmp_path,
    )
    corpus = api.prepare(recipe, workers=1)
    with pytest.raises(UsageError, match="a user says alone") as caught:
        api_objects._as_user(Vocabulary.of(CorpusVersion.open(recipe.workspace, corpus.digest)), "Late?")
    assert "Who am I?" in caught.value.why


def test_a_run_without_conversations_answers_no_user(tmp_path: Path) -> None:
    run = Path(train(make_recipe(tmp_path, budget={"steps": 1}), make_corpus(tmp_path), console=Silent())["run"])
    with pytest.raises(UsageError, match="no conversations"):
        api_objects._as_user(api.open_run(run).vocabulary(), "Hello?")
