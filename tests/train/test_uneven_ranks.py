"""Ranks of unequal speed, one of them without any sample, make the steps of one process; nobody waits for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_corpus import make_corpus, make_recipe
from unequal_rank import STEPS, train

from sheaf.parallel.launch import Ended, forker, run_once
from sheaf.parallel.ranks import alone

HERE = Path(__file__).parent


@pytest.mark.parametrize(("packing", "documents"), [("best-fit", 200), ("padded", 220)])
def test_unequal_shares_and_empty_ranks_change_no_loss_and_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str, documents: int
) -> None:
    make_corpus(tmp_path, documents=documents)
    recipe = make_recipe(tmp_path, packing=packing, held_out=0.1)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(by_alias=True))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    words = [str(tmp_path / "recipe.json"), str(tmp_path)]
    with forker("unequal_rank", ["torch"], 3) as starts:
        assert run_once(starts, words, 3, tmp_path) == Ended()
    ranks = [json.loads((tmp_path / f"{rank}.json").read_bytes()) for rank in range(3)]
    one = train(recipe, alone(), None)
    assert ranks[2]["samples"] == [0] * STEPS
    assert all(sum(r["samples"][step] for r in ranks) == 8 for step in range(STEPS))
    assert one["left"] < 3  # in the last held-out step some rank has nothing either
    for told in ranks:
        for name in ("losses", "norms", "loss"):
            assert told[name] == pytest.approx(one[name], rel=1e-4), name
