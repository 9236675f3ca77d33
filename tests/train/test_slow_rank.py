"""A slow machine among the ranks does not set the pace: it gets less of a step, and the steps stay what they are."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from slow_rank import WINDOW
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.order.trace import trace_step
from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.report.team import team_facts
from sheaf.train import journal
from sheaf.train.launch import train
from sheaf.train.setup import order_of
from sheaf.train.trace import places_of, trace_item

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

    assert [line["step"] for line in measured if "speeds" in line] == list(range(WINDOW, STEPS))
    fast, slow = measured[WINDOW]["speeds"]
    assert slow < fast
    order = order_of(recipe, corpus, "train")
    had = [[json.loads(line) for line in (run / f"had-{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    for step, line in enumerate(measured):  # a trace names the rank that had a sample, under either split
        places = {slot: (rank, row) for rank in (0, 1) for row, slot in enumerate(had[rank][step])}
        assert places_of(order, line) == places
    record = trace_step(order, WINDOW)[0].runs[0].record
    uses = {(use["step"], use["sample"]): (use["rank"], use["row"]) for use in trace_item(run, record)["uses"]}
    assert uses[WINDOW, 0] == places_of(order, measured[WINDOW])[0]

    def seconds(lines: list[dict[str, float]]) -> float:
        return statistics.median(line["seconds"] for line in lines)

    assert seconds(measured[WINDOW + 1 :]) < 0.85 * seconds(measured[:WINDOW])
    team = team_facts(measured)
    assert team is not None and team.ranks[1].share > 0.5 and team.splits == ((WINDOW, [fast, slow]),)
