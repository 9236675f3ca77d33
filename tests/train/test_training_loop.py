"""What a run decides, measures, writes down and refuses."""

from __future__ import annotations

import fcntl
import math
import os
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from training_corpus import VOCABULARY, make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import DataRefused, RecipeError, TrainingFailed, UsageError
from sheaf.model.loss import per_token_loss
from sheaf.order.held_out import held_out
from sheaf.recipe import MixtureEntry
from sheaf.train import journal
from sheaf.train.checkpoint import list_checkpoints, load_model
from sheaf.train.evaluate import evaluate_run
from sheaf.train.launch import new_run_folder, resume, train
from sheaf.train.run import Run
from sheaf.train.settings import attention_span
from sheaf.train.setup import order_of


class Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_journal_accounts_for_every_step_and_token(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    result = train(make_recipe(tmp_path, budget={"steps": 10}), corpus, console=Silent())
    lines = journal.read(Path(result["run"]))
    assert [line["step"] for line in lines] == list(range(10))
    assert np.cumsum([line["valid_tokens"] for line in lines]).tolist() == [line["tokens"] for line in lines]
    wanted = {"loss", "samples", "lr", "grad_norm", "tokens_per_second", "seconds", "bytes_sent", "ranks", "padding"}
    assert all(wanted <= line.keys() for line in lines)
    assert all(len(line["samples"]) == 32 for line in lines)
    assert result["steps"] == 10 and result["loss"] == lines[-1]["loss"]
    assert Path(result["checkpoint"]).name == "step-00000010"
    assert result["validation_loss"] == journal.read_evaluations(Path(result["run"]))[-1]["loss"]
    assert orjson.loads((Path(result["run"]) / "run.json").read_bytes())["result"] == result
    span = attention_span(order_of(Run.open(Path(result["run"])).recipe, corpus, "train"))
    assert 1 < span < 64 / 2 + 1
    per_token = load_model(Path(result["run"]))[0].config.flops_per_token(span)
    assert result["model_flops_per_second"] == pytest.approx(per_token * result["tokens_per_second"])


def test_the_first_loss_is_that_of_a_model_that_knows_nothing(tmp_path: Path) -> None:
    result = train(make_recipe(tmp_path, budget={"steps": 1}), make_corpus(tmp_path), console=Silent())
    assert result["loss"] == pytest.approx(math.log(VOCABULARY), abs=0.1)


def test_micro_batches_do_not_change_the_step(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    runs = [
        train(make_recipe(tmp_path, budget={"steps": 5}, micro_batch_tokens=tokens), corpus, console=Silent())["run"]
        for tokens in (64, 192, 512)
    ]
    losses = [[line["loss"] for line in journal.read(Path(run))] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_bits_per_byte_is_the_code_length_of_whole_documents(tmp_path: Path) -> None:
    """Against a plain loop: one document at a time, unpacked."""
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 5}, sequence_length=256, batch_tokens=1024)
    run = Path(train(recipe, corpus, console=Silent())["run"])
    model, _ = load_model(run)
    files, documents = corpus.token_files(), corpus.documents
    numbers = np.flatnonzero(held_out(documents.id, recipe.train.held_out))
    nats = 0.0
    for i in numbers:
        start = int(documents.offset[i])
        tokens = torch.from_numpy(files[documents.shard[i]][start : start + documents.length[i]].astype(np.int64))[None]
        inputs = tokens[:, :-1]
        hidden = model(inputs, torch.arange(inputs.shape[1])[None], torch.zeros_like(inputs))
        nats += per_token_loss(hidden, model.head_weight, tokens[:, 1:]).sum().item() + math.log(VOCABULARY)
    got = evaluate_run(run)
    assert got["documents"] == len(numbers)
    assert got["bytes"] == corpus.text_bytes(numbers)
    assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / got["bytes"], rel=1e-5)


def test_budgets_in_tokens_and_epochs_become_steps(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    tokens = train(make_recipe(tmp_path, budget={"tokens": "5k"}), corpus, console=Silent())
    assert 4500 <= tokens["tokens"] <= 5500
    epochs = train(make_recipe(tmp_path, budget={"epochs": 0.1}), corpus, console=Silent())
    total = int((corpus.documents.length - 1).sum())
    assert epochs["tokens"] == pytest.approx(0.1 * total, rel=0.3)


def test_a_budget_of_hours_is_measured_before_the_first_step_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two beside another test's wait for each other, five times as long
    corpus, console = make_corpus(tmp_path), Listening()
    result = train(make_recipe(tmp_path, budget={"hours": 5 / 3600}), corpus, console=console)
    settings = Run.open(Path(result["run"])).settings
    assert settings.steps == result["steps"] > 1
    assert any("were measured" in note for note in console.notes)
    by_steps = train(make_recipe(tmp_path, budget={"steps": result["steps"]}), corpus, console=Silent())
    assert [line["loss"] for line in journal.read(Path(result["run"]))] == [
        line["loss"] for line in journal.read(Path(by_steps["run"]))
    ]  # measuring left no trace


def test_the_run_ends_where_the_data_ends_and_says_so(tmp_path: Path) -> None:
    corpus, console = make_corpus(tmp_path, documents=100), Listening()
    recipe = make_recipe(tmp_path, budget={"steps": 10_000})
    half = MixtureEntry(max_epochs=0.5)
    capped = recipe.model_copy(update={"mixture": {"alpha": half, "beta": half}})
    result = train(capped, corpus, console=console)
    assert 1 < result["steps"] < 100
    assert any("max_epochs of all sources are used up" in note for note in console.notes)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step_and_its_samples(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 40}, learning_rate=1e30, optimizer="adamw", checkpoint_every=1)
    with pytest.raises(TrainingFailed, match="diverged") as raised:
        train(recipe, corpus, console=Silent())
    run = tmp_path / "runs" / "test-001"
    done = journal.steps_done(run)
    assert f"step {done}, samples " in raised.value.where
    assert all(math.isfinite(line["loss"]) for line in journal.read(run))
    assert all(int(path.name.removeprefix("step-")) <= done for path in list_checkpoints(run))


def test_nothing_held_out_means_no_validation_loss_and_a_clear_refusal_to_evaluate(tmp_path: Path) -> None:
    console = Listening()
    result = train(make_recipe(tmp_path, held_out=0.0, budget={"steps": 2}), make_corpus(tmp_path), console=console)
    assert result["validation_loss"] is None
    begin = next(i for i, note in enumerate(console.notes) if note.startswith("step 1/"))
    assert any("no validation: train.held_out is 0" in note for note in console.notes[:begin])
    with pytest.raises(DataRefused, match="held out"):
        evaluate_run(Path(result["run"]))


def test_two_processes_cannot_train_one_run(tmp_path: Path) -> None:
    result = train(make_recipe(tmp_path, budget={"steps": 2}), make_corpus(tmp_path), console=Silent())
    run = Run.open(Path(result["run"])).updated(result=None)
    fd = os.open(run.folder / ".lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    before = (run.folder / "run.json").read_bytes()
    with pytest.raises(UsageError, match="another process"):
        resume(run.folder, nproc=2, console=Silent())
    assert (run.folder / "run.json").read_bytes() == before
    os.close(fd)


def test_the_notes_disk_being_full_stops_nothing(tmp_path: Path) -> None:
    class Fills(Listening):
        def note(self, text: str) -> None:
            super().note(text)
            if text.startswith("step 1/"):
                notes = tmp_path / "runs" / "test-001" / "notes.txt"
                notes.unlink()
                notes.symlink_to("/dev/full")

    console = Fills()
    result = train(make_recipe(tmp_path, budget={"steps": 5}), make_corpus(tmp_path), console=console)
    assert result["steps"] == 5
    assert sum("cannot be written: No space left" in note for note in console.notes) == 1
    assert any(note.startswith("step 5/5") for note in console.notes)


@pytest.mark.parametrize("tokens", ["9" * 30, "9" * 400])
def test_a_budget_beyond_all_numbers_is_refused_before_a_folder_is_made(tmp_path: Path, tokens: str) -> None:
    with pytest.raises(RecipeError, match="budget") as raised:
        train(make_recipe(tmp_path, budget={"tokens": tokens}), make_corpus(tmp_path), console=Silent())
    assert raised.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_a_batch_of_whole_samples_is_named_if_it_is_not_what_was_asked_for(tmp_path: Path) -> None:
    console = Listening()
    result = train(make_recipe(tmp_path, batch_tokens=600, budget={"steps": 1}), make_corpus(tmp_path), console=console)
    assert result["tokens"] <= 576
    assert "a global batch of 576 tokens: 9 whole samples of 64, of the 600 asked for" in console.notes


def test_run_folders_are_numbered_and_never_shared(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    names = [new_run_folder(recipe).name for _ in range(3)]
    assert names == ["test-001", "test-002", "test-003"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run"):
        resume(tmp_path, console=Silent())
