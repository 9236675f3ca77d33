"""A slow machine among the ranks does not set the pace: it gets less of a step, and the steps stay what they are."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from slow_rank import WINDOW
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.report.team import team_facts
from sheaf.train import journal
from sheaf.train.launch import train

STEPS = WINDOW + 10


def test_a_rank_that_is_slow_gets_less_and_the_same_steps_are_made_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    corpus = make_corpus(tmp_path)
    usual = {"budget": {"steps": STEPS}, "learning_rate": 0.01, "batch_tokens": 512}
    recipe = make_recipe(tmp_path, **usual)
    run = Path(train(recipe, corpus, nproc=2, start_only=True, console=Silent())["run"])
    with forker("slow_rank", ("sheaf.train.trainer", "torch._inductor"), 2) as starts:
        assert run_once(starts, [str(run)], 2, tmp_path) == Ended()
    measured, alone = journal.read(run), journal.read(Path(train(recipe, corpus, console=Silent())["run"]))
    assert [line["samples"] for line in measured] == [line["samples"] for line in alone]
    assert [line["loss"] for line in measured] == pytest.approx([line["loss"] for line in alone], rel=1e-3)

    (changed,) = [line["step"] for line in measured if "speeds" in line]
    assert changed == WINDOW - 1
    fast, slow = measured[changed]["speeds"]
    assert slow < fast

    def seconds(lines: list[dict[str, float]]) -> float:
        return statistics.median(line["seconds"] for line in lines)

    assert seconds(measured[changed + 2 :]) < 0.85 * seconds(measured[: changed + 1])
    team = team_facts(measured)
    assert team is not None and team.ranks[1].share > 0.5 and team.splits == ((changed, [fast, slow]),)
