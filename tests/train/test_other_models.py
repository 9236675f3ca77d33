"""A model of another family through a whole run: ranks, resume, export."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
import transformers
from published import published, rewound
from saved_tensors import saved_tensors
from training_corpus import VOCABULARY, make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.model.families import load_folder
from sheaf.recipe import ModelSpec
from sheaf.train import journal
from sheaf.train.checkpoint import load_model
from sheaf.train.evaluate import evaluate_run
from sheaf.train.launch import resume, train


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small GPT-2, whose folder holds no tokenizer."""
    root = tmp_path_factory.mktemp("other")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
    corpus = make_corpus(root, chats=True)
    recipe = make_recipe(root, budget={"steps": 6}, checkpoint_every=3, learning_rate=0.01)
    recipe = recipe.model_copy(update={"model": ModelSpec.model_validate({"from": str(root / "base")})})
    return Path(train(recipe, corpus, console=Silent())["run"])


def test_it_learns_and_is_evaluated(made: Path) -> None:
    lines = journal.read(made)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert evaluate_run(made)["loss"] == pytest.approx(journal.read_evaluations(made)[-1]["loss"], rel=0.2)


def test_it_resumes_bit_for_bit_and_two_ranks_compute_the_same(made: Path) -> None:
    again = rewound(made, made.with_name("test-101"), 3)
    resume(again, console=Silent())
    one, two = saved_tensors(made), saved_tensors(again)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    on_two = rewound(made, made.with_name("test-102"), 3)
    resume(on_two, nproc=2, console=Silent())
    for a, b in zip(journal.read(made), journal.read(on_two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_its_export_is_what_its_own_code_loads(made: Path, tmp_path: Path) -> None:
    from sheaf.model.pretrained import export_folder

    published(tmp_path / "for-a-tokenizer")
    model, _ = load_model(made)
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        ours = model.logits(model(ids, torch.arange(39)[None]))
    export_folder(model, tmp_path / "out", tmp_path / "for-a-tokenizer" / "tokenizer.json", 0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=1e-4, atol=1e-4)
    assert theirs.config.eos_token_id == 0 and theirs.generation_config.eos_token_id == 0
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|endoftext|>"
    assert type(load_folder(tmp_path / "out", torch.float32)) is type(model)
