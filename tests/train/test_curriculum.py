"""Weights that change on the way, by the recipe or by hand where a run is resumed; what a run's journal says of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
from training_corpus import make_corpus, make_recipe

from sheaf import api
from sheaf.cli import main
from sheaf.console import Silent
from sheaf.errors import UsageError
from sheaf.recipe import Recipe
from sheaf.train import journal
from sheaf.train.curriculum import with_steps
from sheaf.train.launch import resume, train
from sheaf.train.run import Run
from sheaf.train.settings import planned_steps
from sheaf.train.setup import order_of, placed


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def recipe_with(
    root: Path, curriculum: list[dict[str, Any]], mixture: dict[str, Any] | None = None, **train: Any
) -> Recipe:
    recipe = orjson.loads(make_recipe(root, **train).model_dump_json(by_alias=True))
    changes = {"curriculum": curriculum} | ({} if mixture is None else {"mixture": mixture})
    return Recipe.model_validate_json(orjson.dumps(recipe | changes))


def cut_back(run: Path, step: int) -> Path:
    """A copy of a finished run as if it had been killed when its newest checkpoint was that of `step`."""
    copy = run.with_name(f"test-{step:03d}")
    shutil.copytree(run, copy)
    Run.open(copy).updated(result=None)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    return copy


def share_of_beta(lines: list[dict[str, Any]]) -> float:
    tokens = [line["source_tokens"].get("beta", 0) for line in lines]
    return sum(tokens) / sum(sum(line["source_tokens"].values()) for line in lines)


def test_a_share_of_the_run_becomes_a_step_and_the_journal_has_the_figures_of_each_step(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = recipe_with(tmp_path, [{"at": "50%", "weights": {"beta": 6}}], budget={"steps": 20})
    run = Run.open(Path(train(recipe, corpus, console=Silent())["run"]))
    assert run.record["recipe"]["curriculum"] == [{"at": 10, "weights": {"beta": 6.0}}]
    lines = journal.read(run.folder)
    assert {line["step"]: line["weights"] for line in lines if "weights" in line} == {
        0: {"alpha": pytest.approx(2 / 3), "beta": pytest.approx(1 / 3)},
        10: {"alpha": 0.25, "beta": 0.75},
    }
    assert share_of_beta(lines[:10]) == pytest.approx(1 / 3, abs=0.03)
    assert share_of_beta(lines[10:]) == pytest.approx(3 / 4, abs=0.03)
    for line in lines:
        assert sum(line["source_tokens"].values()) == line["valid_tokens"]
        assert line["packing"] == pytest.approx(line["valid_tokens"] / 512, abs=1e-5) and line["balance"] == 1.0
    order = order_of(run.recipe, corpus, "train")
    assert [line["samples"] for line in lines] == [order.digest(step) for step in range(20)]


@pytest.mark.parametrize("budget", [{"steps": 30}, {"epochs": 2}, {"tokens": "14k"}])
def test_shares_of_any_budget_that_can_be_counted_find_their_steps(tmp_path: Path, budget: dict[str, Any]) -> None:
    corpus = make_corpus(tmp_path)
    curriculum = [{"at": "25%", "weights": {"alpha": 0}}, {"at": "80.5%", "weights": {"alpha": 1}}]
    recipe = recipe_with(tmp_path, curriculum, budget=budget, packing="padded")
    found = placed(recipe, corpus)
    steps, _ = planned_steps(found.train.budget, order_of(found, corpus, "train"))
    assert [change.at for change in found.curriculum] == [steps * 25 // 100, steps * 805 // 1000]
    assert with_steps(found, lambda recipe: pytest.fail("nothing is left to place")) is found


def test_weights_changed_by_hand_begin_where_the_run_goes_on_and_every_step_can_still_be_made_again(
    tmp_path: Path,
) -> None:
    corpus = make_corpus(tmp_path)
    calm = Path(train(make_recipe(tmp_path, budget={"steps": 16}, checkpoint_every=4), corpus, console=Silent())["run"])
    run = cut_back(calm, 8)
    api.resume(run, weights={"beta": 6})
    changed = Run.open(run)
    assert changed.record["changes"][0].items() >= {"step": 8, "weights": {"beta": 6}}.items()
    before, after = journal.read(calm), journal.read(run)
    assert [line["samples"] for line in after[:8]] == [line["samples"] for line in before[:8]]
    assert all(a["samples"] != b["samples"] for a, b in zip(after[8:], before[8:], strict=True))
    assert [line["step"] for line in after if "weights" in line] == [0, 8]
    assert share_of_beta(after[8:]) == pytest.approx(3 / 4, abs=0.05)
    order = order_of(changed.recipe, corpus, "train")
    assert [line["samples"] for line in after] == [order.digest(step) for step in range(16)]
    assert "beta: 6" in (run / "recipe.yaml").read_text()
    assert "from step 8 on, shares of the tokens: alpha 25.0%, beta 75.0%" in (run / "notes.txt").read_text()

    again = cut_back(run, 12)  # killed once more, and resumed by somebody who asks for nothing
    resume(again, console=Silent())
    assert [line["samples"] for line in journal.read(again)] == [line["samples"] for line in after]


def test_on_the_command_line_a_change_is_a_word_and_other_words_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path)
    calm = Path(train(make_recipe(tmp_path, budget={"steps": 4}, checkpoint_every=2), corpus, console=Silent())["run"])
    run = cut_back(calm, 2)
    before = (run / "run.json").read_bytes()
    for word, said in (
        ("train.seed=8", "cannot be changed in a run that has begun"),
        ("mixture.beta.max_epochs=8", "cannot be changed in a run that has begun"),
        ("mixture.betta.weight=8", "write 'beta'"),
        ("mixture.beta.weight=-1", "greater than or equal to 0"),
        ("mixture.beta.weight=much", "valid number"),
    ):
        assert main(["resume", str(run), word]) == 2
        assert said in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before
    assert main(["resume", str(run), "mixture.beta.weight=3", "mixture.alpha.weight=1", "--json"]) == 0
    assert journal.read(run)[2]["weights"] == {"alpha": 0.25, "beta": 0.75}


def test_weights_that_would_end_a_run_before_its_budget_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    mixture = {"alpha": {"weight": 1}, "beta": {"weight": 1, "max_epochs": 1}}
    recipe = recipe_with(tmp_path, [], mixture, budget={"steps": 40}, checkpoint_every=4)
    run = cut_back(Path(train(recipe, corpus, console=Silent())["run"]), 8)
    with pytest.raises(UsageError, match="before its budget"):
        resume(run, weights={"alpha": 0}, console=Silent())


def test_a_journal_line_of_many_sources_is_still_the_last_one(tmp_path: Path) -> None:
    line = {"step": 7, "weights": {f"source-{n}": 0.5 for n in range(2000)}}
    for before in (b"", b'{"step": 6}\n'):
        (tmp_path / journal.STEPS).write_bytes(before + orjson.dumps(line) + b"\n" + b'{"step')
        assert journal.steps_done(tmp_path) == 8


def test_padded_rows_are_learned_from_as_packed_ones_are(tmp_path: Path) -> None:
    """Held-out text, none of which is cut, has one loss however it is laid out; and training goes on from there."""
    corpus = make_corpus(tmp_path)
    told = {
        packing: train(
            make_recipe(
                tmp_path,
                packing=packing,
                sequence_length=256,
                batch_tokens=1024,
                budget={"steps": 3},
                learning_rate=1e-9,
                evaluate_tokens=10**6,
            ),
            corpus,
            console=Silent(),
        )
        for packing in ("best-fit", "concatenate", "padded")
    }
    losses = [result["validation_loss"] for result in told.values()]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)
    for result in told.values():  # filling up passes adds to what the samples leave empty
        for line in journal.read(Path(result["run"])):
            assert 1 - line["packing"] <= line["padding"] + 1e-5 < 0.5
