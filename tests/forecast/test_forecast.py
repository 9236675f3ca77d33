"""Forecasts of runs: refused where they are doomed, kept beside the run, learned from."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import orjson
import pytest
from tests.train.training_corpus import make_corpus, make_recipe

import sheaf
from sheaf.console import Silent
from sheaf.errors import Doomed, UsageError
from sheaf.forecast import budget, doomed, where
from sheaf.forecast.calibrate import CALIBRATION, calibrate
from sheaf.forecast.fact import FORECAST
from sheaf.forecast.here import Measured
from sheaf.forecast.memory import memory_of
from sheaf.forecast.plan import plan
from sheaf.forecast.subject import of_corpus
from sheaf.parallel.layout import describe
from sheaf.parallel.links import Link, Machine
from sheaf.parallel.rates import Rates
from sheaf.recipe import Budget, Layout, MixtureEntry, Prices, Recipe, SourceSpec
from sheaf.recipe_file import dump
from sheaf.report.facts import run_facts
from sheaf.train.launch import train
from sheaf.train.run import Run

LINK = Link(1e9, 1e-4)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known rates: the probe has tests of its own."""
    machine = Machine(Rates.alike(1e10, 1e9), LINK, LINK, 2)
    monkeypatch.setattr(where, "measured", lambda *_: Measured(machine, 2.0, 5.0, 1e9))


def no_survey() -> dict[str, object]:
    raise AssertionError("there is a corpus")


@pytest.mark.usefixtures("known")
def test_a_plan_tells_steps_memory_time_and_every_layout(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    recipe = make_recipe(tmp_path)
    data = plan(recipe, nproc=2, price=3.0, survey=no_survey)
    training = data["training"]
    assert training["steps"] == {"value": 20, "error": 0.0}
    assert training["step_seconds"]["value"] == pytest.approx(sum(training["step"].values()))
    assert training["seconds"]["value"] == pytest.approx(sum(training["run"].values()))
    assert training["cost"]["value"] == pytest.approx(3.0 * 2 * training["seconds"]["value"] / 3600)
    assert training["memory_bytes"]["value"] == pytest.approx(sum(training["memory"].values()))
    assert training["memory"]["weights"] == 4 * data["model"]["parameters"]
    seconds = [row["step_seconds"] for row in data["layouts"]]
    assert seconds == sorted(seconds)
    told = {row["layout"]: row["reason"] for row in data["layouts"] + data["rejected"]}
    assert told["{data: 2}"] == ""
    assert "1 key-value heads cannot be divided" in told["{tensor: 2}"]
    assert len(told) == 5  # every way to spread two ranks


@pytest.mark.usefixtures("known")
def test_where_no_layout_fits_the_plan_names_changes_after_which_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, batch_tokens=8192, micro_batch_tokens=8192)
    needed = memory_of(of_corpus(recipe, corpus, 1), Layout(), 0.0, gpu=False)
    assert needed is not None
    assert plan(recipe, nproc=1, survey=no_survey)["changes"] == []
    monkeypatch.setattr(where, "memory_for", lambda _: 0.95 * needed.peak)
    data = plan(recipe, nproc=1, survey=no_survey)
    assert not data["training"]["fits"] and 2 <= len(data["changes"]) <= 3
    assert data["changes"][0] == "train.micro_batch_tokens=64"
    for words in data["changes"]:
        changed = sheaf.load(written(recipe, tmp_path), shlex.split(words))
        assert plan(changed, nproc=1, survey=no_survey)["training"]["fits"]


@pytest.mark.usefixtures("known")
def test_prices_of_the_recipe_make_costs(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    priced = make_recipe(tmp_path).model_copy(update={"prices": Prices(rank_hour=3.0)})
    training = plan(priced, nproc=2, survey=no_survey)["training"]
    assert training["cost"]["value"] == pytest.approx(3.0 * 2 * training["seconds"]["value"] / 3600)
    training = plan(priced, nproc=2, price=1.0, survey=no_survey)["training"]
    assert training["cost"]["value"] == pytest.approx(2 * training["seconds"]["value"] / 3600)


@pytest.mark.usefixtures("known")
def test_what_preparing_costs_is_that_of_its_workers(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some words of a text " * 2000)
    recipe = make_recipe(tmp_path).model_copy(
        update={
            "sources": (SourceSpec(name="a", uri=str(tmp_path / "docs")),),
            "prices": Prices(worker_hour=0.5),
            "workspace": str(tmp_path / "other"),
        }
    )
    prepare = sheaf.plan(recipe, nproc=1, workers=2)["prepare"]
    assert prepare["cost"]["value"] == pytest.approx(0.5 * 2 * prepare["seconds"]["value"] / 3600)
    assert prepare["memory_bytes"]["value"] > 5e8


@pytest.mark.usefixtures("known")
def test_a_budget_buys_a_model_and_more_of_it_a_larger_one(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    subject = of_corpus(make_recipe(tmp_path, batch_tokens=4096), corpus, 1)
    place = where.here(subject, 1, Silent())
    small, large = (budget.afforded(subject, place, words, 2.0) for words in ("10 minutes", "20 EUR"))
    assert small["seconds"] == 600 and large["seconds"] == 36_000 and large["currency"] == "EUR"
    assert small["parameters"] < large["parameters"] and large["loss"] < small["loss"]
    assert "Besiroglu" in small["source"] and any("fitted to models" in note for note in small["notes"])
    with pytest.raises(UsageError, match="nobody knows what 5 EUR buys"):
        budget.budget_seconds("5 EUR", None, 1)
    with pytest.raises(UsageError, match="this is no budget"):
        budget.budget_seconds("soon", None, 1)


def test_the_law_s_optimum_is_where_it_was_published() -> None:
    """Besiroglu et al. 2024: about 20 tokens a weight at Chinchilla's 5.76e23 FLOPs."""
    flops = 5.76e23
    best = min((10 ** (9 + n / 200) for n in range(600)), key=lambda n: budget.loss(n, flops / 6 / n))
    assert 15 < flops / 6 / best / best < 27


def test_epochs_over_the_cap_are_refused_with_changes_that_fit(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 5000})
    capped = recipe.model_copy(
        update={"mixture": {"alpha": MixtureEntry(max_epochs=2), "beta": MixtureEntry(max_epochs=3)}}
    )
    assert doomed.forecast_of_run(recipe, corpus, None) is not None
    with pytest.raises(Doomed, match="could not be finished: epochs") as raised:
        doomed.forecast_of_run(capped, corpus, None)
    assert raised.value.exit_code == 4
    changes = raised.value.fix.split("; or ")
    assert len(changes) == 3
    for words in changes:
        assert (
            doomed.forecast_of_run(sheaf.load(written(capped, tmp_path), shlex.split(words)), corpus, None) is not None
        )


def written(recipe: Recipe, folder: Path) -> Path:
    path = folder / "sheaf.yaml"
    path.write_text(dump(recipe))
    return path


def test_memory_that_cannot_do_is_refused_with_what_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, batch_tokens=8192, micro_batch_tokens=8192, out_of_memory="stop")
    subject = of_corpus(recipe, corpus, 1)
    needed = memory_of(subject, Layout(), 0.0, gpu=False)
    assert needed is not None
    monkeypatch.setattr(where, "memory_for", lambda _: 0.85 * needed.peak)
    with pytest.raises(Doomed, match="could not be finished: memory") as raised:
        doomed.forecast_of_run(recipe, corpus, None)
    assert "activations" in raised.value.why
    assert raised.value.fix.startswith("train.micro_batch_tokens=64; or ")
    shrinking = recipe.model_copy(update={"train": recipe.train.model_copy(update={"out_of_memory": "shrink"})})
    assert doomed.forecast_of_run(shrinking, corpus, None) is not None  # it goes on with smaller passes


def test_checkpoints_that_have_no_room_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    needed = doomed.disk_bytes(of_corpus(make_recipe(tmp_path), corpus, 1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(0.85 * needed)))
    with pytest.raises(Doomed, match="could not be finished: disk") as raised:
        doomed.forecast_of_run(make_recipe(tmp_path), corpus, None)
    assert raised.value.fix.startswith("train.keep=2; or train.keep_best=false")


def test_hours_in_which_no_step_fits_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, batch_tokens=2**29)
    hopeless = recipe.train.model_copy(update={"budget": Budget(hours=1e-4)})
    with pytest.raises(Doomed, match="could not be finished: hours"):
        doomed.forecast_of_run(recipe.model_copy(update={"train": hopeless}), corpus, None)


def test_a_run_keeps_its_forecast_and_calibration_learns_from_it(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    recipe = make_recipe(tmp_path, budget={"steps": 4})
    forecast = doomed.forecast_of_run(recipe, corpus, None)
    assert forecast is not None
    run = Path(train(recipe, corpus, forecast=forecast, console=Silent())["run"])
    assert orjson.loads((run / FORECAST).read_bytes())["raw"] == forecast["raw"]
    shown = run_facts(Run.open(run), corpus).forecast
    assert [one.name for one in shown] == ["step seconds", "memory", "steps seconds", "evaluation seconds"]
    learned = calibrate(recipe)
    assert learned["runs"] == 1 and (tmp_path / CALIBRATION).exists()
    factor = learned["kinds"][forecast["kind"]]["step_seconds"]["factor"]
    again = doomed.forecast_of_run(recipe, corpus, None)
    assert again is not None
    assert again["step_seconds"]["value"] == pytest.approx(factor * forecast["raw"]["step_seconds"], rel=1e-3)
    assert again["raw"] == forecast["raw"]  # factors never pile up
    assert again["calibrated"]["runs"] == 1
    assert describe(Layout()) == again["layout"]


def test_there_is_nothing_to_learn_from_without_a_finished_run(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    with pytest.raises(UsageError, match="no finished run with a forecast"):
        calibrate(make_recipe(tmp_path))
