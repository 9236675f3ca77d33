"""A loss or gradient that is not finite is led back to the documents that gave it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from training_corpus import VOCABULARY, make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.corpus.version import CorpusVersion
from sheaf.errors import TrainingFailed
from sheaf.model.config import of_preset
from sheaf.model.decoder import Decoder
from sheaf.model.init import initialise
from sheaf.order.trace import trace_step
from sheaf.recipe import Layout, ModelSpec, Recipe
from sheaf.train import journal
from sheaf.train.launch import train
from sheaf.train.setup import order_of

ODD = 57


def recipe_with_a_bad_token(root: Path, corpus: CorpusVersion, value: float) -> Recipe:
    """The model that is trained on has learned its only odd token to this value."""
    folder = root / "model"
    folder.mkdir()
    recipe = make_recipe(root, budget={"steps": 60}, checkpoint_every=50)
    spec = recipe.model.model_copy(update={"tied": False})
    config = of_preset(spec, vocab_size=corpus.vocab_size, max_positions=64, end_of_text=0)
    model = Decoder(config, torch.float32)
    initialise(model, 3)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    weights["model.embed_tokens.weight"][VOCABULARY] = value
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_bytes(orjson.dumps(config.to_hf()))
    return recipe.model_copy(update={"model": ModelSpec.model_validate({"from": str(folder)})})


@dataclass(frozen=True)
class Place:
    step: int
    slot: int
    rank: int


def first_use(recipe: Recipe, corpus: CorpusVersion, record: str, world: int) -> Place:
    order = order_of(recipe, corpus, "train")
    for step in range(60):
        for sample in trace_step(order, step):
            for run in sample.runs:
                middle = int(corpus.documents.length[run.document]) // 2
                if run.record == record and run.start <= middle < run.end:
                    ranks = order.split_ranks(step, world)
                    rank = next(i for i, slots in enumerate(ranks) if sample.slot in slots)
                    return Place(step, sample.slot, rank)
    raise AssertionError("the run is too short to use it")


def record_with_the_odd_token(corpus: CorpusVersion) -> str:
    documents, files = corpus.documents, corpus.token_files()
    for number in range(len(documents)):
        start, length = int(documents.offset[number]), int(documents.length[number])
        if VOCABULARY in files[int(documents.shard[number])][start : start + length]:
            return bytes(documents.id[number]).hex()
    raise AssertionError("no document has it")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def spoil_the_gradient(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """As a kernel whose backward is wrong for one token: the loss stays what it is."""
    if isinstance(module, Decoder) and output.requires_grad:
        spoiled = (inputs[0] == VOCABULARY)[..., None]
        output.register_hook(lambda gradient: torch.where(spoiled, math.nan, gradient))


@pytest.mark.parametrize(("what", "ranks"), [("loss", 2), ("gradient", 1)])
def test_the_step_rank_and_document_of_what_is_not_finite_are_named(tmp_path: Path, what: str, ranks: int) -> None:
    corpus = make_corpus(tmp_path, odd=ODD)
    recipe = recipe_with_a_bad_token(tmp_path, corpus, math.nan if what == "loss" else 0.5)
    record = record_with_the_odd_token(corpus)
    place = first_use(recipe, corpus, record, ranks)

    hook = register_module_forward_hook(spoil_the_gradient) if what == "gradient" else None
    try:
        with pytest.raises(TrainingFailed, match="diverged") as raised:
            train(recipe, corpus, nproc=ranks, console=Silent())
    finally:
        if hook is not None:
            hook.remove()
    error, run = raised.value, tmp_path / "runs" / "test-001"
    assert f"step {place.step}, samples " in error.where and error.where.endswith(f"rank {place.rank}")
    assert f"1 of 8 samples gives it: the {what} of record " in error.why
    assert f"(sample {place.slot} on rank {place.rank})" in error.why
    assert journal.steps_done(run) == place.step
    report = orjson.loads((run / "not-finite.json").read_bytes())
    (sample,) = report["samples"]
    assert (report["step"], sample["rank"], sample["sample"]) == (place.step, place.rank, place.slot)
    named = [document["record"] for document in sample["documents"]]
    assert named == [record] if what == "loss" else record in named
    assert not (run / "restarts.jsonl").exists()  # it would only happen again


def test_where_ranks_share_a_model_the_step_the_ranks_and_all_their_documents_are_named(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, odd=ODD)
    recipe = recipe_with_a_bad_token(tmp_path, corpus, math.nan)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"layout": Layout(shard=2)})})
    record = record_with_the_odd_token(corpus)
    place = first_use(recipe, corpus, record, 2)
    with pytest.raises(TrainingFailed, match="diverged") as raised:
        train(recipe, corpus, console=Silent())
    run = tmp_path / "runs" / "test-001"
    assert f"step {place.step}, samples " in raised.value.where and raised.value.where.endswith(f"rank {place.rank}")
    assert "not looked for where ranks share a model ({shard: 2}); it is among 4 samples" in raised.value.why
    report = orjson.loads((run / "not-finite.json").read_bytes())
    assert not report["searched"] and place.slot in [sample["sample"] for sample in report["samples"]]
    assert record in [document["record"] for sample in report["samples"] for document in sample["documents"]]


def test_weights_that_are_broken_are_blamed_rather_than_documents(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, budget={"steps": 40}, learning_rate=1e30, optimizer="adamw")
    with pytest.raises(TrainingFailed) as raised:
        train(recipe, make_corpus(tmp_path), console=Silent())
    assert "all 8 samples of the step give it: the weights are the cause" in raised.value.why
