"""Whole runs in which a part stands still, or in which what is saved is not what is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published import rewound
from saved_tensors import saved_tensors
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import RecipeError
from sheaf.model.pieces import Piece
from sheaf.train import journal
from sheaf.train.evaluate import evaluate_run
from sheaf.train.launch import resume, train
from sheaf.train.plan import new_values


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_schedule_free_saves_what_it_evaluates_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(
        tmp_path,
        optimizer="schedule-free",
        budget={"steps": 8},
        evaluate_every=2,
        checkpoint_every=4,
        learning_rate=0.01,
        evaluate_tokens=10**6,
    )
    run = Path(train(recipe, corpus, console=Silent())["run"])
    again = rewound(run, run.with_name("test-101"), 4)
    resume(again, console=Silent())
    assert [line["loss"] for line in journal.read(again)] == [line["loss"] for line in journal.read(run)]
    one, two = saved_tensors(run), saved_tensors(again)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    saved, trained = saved_tensors(run, "weight"), saved_tensors(run, "y")
    assert saved.keys() == trained.keys() and not any(torch.equal(saved[name], trained[name]) for name in saved)
    assert evaluate_run(run)["loss"] == journal.read_evaluations(run)[-1]["loss"]
    rates = [line["lr"] for line in journal.read(run)]
    assert rates[-1] == max(rates)


def test_what_is_frozen_keeps_every_bit_and_has_no_state(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, freeze=["model.embed_tokens*", "*norm*"], budget={"steps": 2})
    _, values = new_values(recipe, corpus)
    run = Path(train(recipe, corpus, console=Silent())["run"])
    after, state = saved_tensors(run, "weight"), saved_tensors(run, "momentum", "exp_avg", "exp_avg_sq")
    still = {name for name in after if torch.equal(after[name], values(name, Piece.whole(after[name].shape)))}
    assert still == {name for name in after if "embed_tokens" in name or "norm" in name}
    assert not any(key.endswith(tuple(still)) for key in state)
    notes = (run / "notes.txt").read_text()
    assert "parameters are trained, the others are frozen" in notes and "Bi et al. 2024" in notes


def test_a_pattern_that_matches_nothing_stops_before_a_run_is_made(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    for wrong in ({"freeze": ["model.embed_token.*"]}, {"rates": {"model.layer.0.*": 0.1}}):
        with pytest.raises(RecipeError, match="matches no parameter") as caught:
            train(make_recipe(tmp_path, **wrong), corpus, console=Silent())
        assert "did you mean 'model." in caught.value.fix
    assert not (tmp_path / "runs").exists()


def test_a_decaying_schedule_is_refused_for_schedule_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes no cosine schedule"):
        make_recipe(tmp_path, optimizer="schedule-free", schedule={"kind": "cosine"})
    with pytest.raises(ValueError, match="betas"):
        make_recipe(tmp_path, optimizer="schedule-free", betas=[0, 0.95])
    assert make_recipe(tmp_path).train.schedule.kind == "cosine"
    assert make_recipe(tmp_path, optimizer="schedule-free").train.schedule.kind == "constant"
