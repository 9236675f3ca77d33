"""Schedules of pipelines: every pass once, nothing before what it needs, and the bubbles of the papers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.model.config import preset
from sheaf.parallel.pipeline import cut
from sheaf.parallel.schedule import Kind, Pass, needs, plan, stages_of


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["1f1b", "interleaved", "zero-bubble"]),
    ranks=st.integers(2, 6),
    micro=st.integers(1, 12),
    backward=st.booleans(),
)
def test_every_pass_is_done_once_on_its_rank_and_no_rank_waits_for_ever(
    kind: Kind, ranks: int, micro: int, backward: bool
) -> None:
    if kind == "interleaved":
        micro *= ranks
    made = plan(kind, ranks, micro, backward=backward)
    works = (["forward", "backward", "weights"] if kind == "zero-bubble" else ["forward", "backward"])[
        : None if backward else 1
    ]
    for rank, passes in enumerate(made.passes):
        wanted = {Pass(w, s, m) for w in works for s in stages_of(kind, ranks, rank) for m in range(micro)}
        assert len(passes) == len(wanted) and set(passes) == wanted
    # Played by ranks that each do the next pass of their list as soon as what it needs is done.
    stages = ranks * len(stages_of(kind, ranks, 0))
    done: set[Pass] = set()
    left = [list(passes) for passes in made.passes]
    while any(left):
        ready = [passes for passes in left if passes and done.issuperset(needs(passes[0], stages))]
        assert ready
        done.update([passes.pop(0) for passes in ready])


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("micro", [8, 16])
def test_bubbles_are_those_of_the_papers(ranks: int, micro: int) -> None:
    p, m = ranks, micro
    assert plan("1f1b", p, m).bubble == pytest.approx((p - 1) / (m + p - 1))
    assert plan("interleaved", p, m).bubble == pytest.approx((p - 1) / (2 * m + p - 1))
    assert plan("zero-bubble", p, m).bubble <= (p - 1) / (3 * m + p - 1) * 1.3


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_layers_are_cut_so_that_the_dearest_stage_is_cheapest(stages: int) -> None:
    config = preset("base", vocab_size=50_000, max_positions=512, end_of_text=0)
    parts = cut(config, stages)
    assert [layer for part in parts for layer in part] == list(range(config.num_hidden_layers))
    head = 50_000 * config.hidden_size / config.layer_matrices()  # some six layers' worth
    costs = [len(part) + (head if part is parts[-1] else 0) for part in parts]
    even = (config.num_hidden_layers + head) / stages
    assert max(costs) < max(even + 1, head + 1 + 1e-9)
