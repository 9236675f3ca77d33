"""A run that leaves its layout open: its ranks choose one, say why, keep it, and choose again when they are others."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.parallel.ranks import alone
from sheaf.recipe import Layout
from sheaf.train.auto_layout import laid_out
from sheaf.train.launch import resume, train
from sheaf.train.run import Run
from sheaf.train.setup import placed_on


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def chosen(run: Run) -> list[str]:
    return [line for line in (run.folder / "notes.txt").read_text().splitlines() if line.startswith("layout {")]


def test_the_ranks_of_a_run_choose_its_layout_once_and_others_choose_anew(tmp_path: Path) -> None:
    corpus, recipe = make_corpus(tmp_path), make_recipe(tmp_path, budget={"steps": 3}, checkpoint_every=1)
    started = train(recipe, corpus, nproc=2, start_only=True, console=Silent())
    run = Run.open(Path(started["run"]))
    assert (run.ranks, run.layout) == (2, None)
    assert resume(run.folder, console=Silent())["steps"] == 3
    run = Run.open(run.folder)
    assert run.layout is not None and run.ranks == 2 and len(chosen(run)) == 1
    assert "measured: " in (run.folder / "notes.txt").read_text()

    again = run.updated(result=None)  # as if it had been killed at its end
    resume(again.folder, console=Silent())
    assert Run.open(run.folder).layout == run.layout and len(chosen(run)) == 1
    again.updated(result=None)
    resume(again.folder, nproc=3, console=Silent())
    three = Run.open(run.folder)
    assert three.ranks == 3 and three.layout is not None and len(chosen(run)) == 2


def test_fewer_ranks_of_a_run_that_left_it_open_are_to_choose(tmp_path: Path) -> None:
    corpus, recipe = make_corpus(tmp_path), make_recipe(tmp_path, budget={"steps": 3})
    run = Run.open(Path(train(recipe, corpus, nproc=3, start_only=True, console=Silent())["run"]))
    run = run.updated(layout=Layout(data=3).model_dump())
    fewer = placed_on(run, 2)
    assert fewer is not None and (fewer.ranks, fewer.layout) == (2, None)
    one = placed_on(run, 1)
    assert one is not None and one.layout == Layout()
    assert laid_out(one, alone(), Silent()).layout == Layout()
