"""Every layout computes what one process computes: losses, gradients of each parameter, weights; a fault is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import UsageError
from sheaf.recipe import Layout, Recipe
from sheaf.train.verify import TOLERANCE, Precision, Verdict, facts_of_verify, layouts_to_try, verify

FAULTS = Path(__file__).parent / "planted_faults.py"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def four_layers(root: Path, tied: bool = True, **train: object) -> Recipe:
    recipe = make_recipe(root, **train)
    shape = {"layers": 4, "heads": 4, "kv_heads": 4, "hidden_size": 64, "tied": tied}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=shape)})


def verdicts(
    root: Path, *layouts: Layout, steps: int = 3, precision: Precision = "fp32", tied: bool = True, **train: object
) -> list[Verdict]:
    corpus, recipe = make_corpus(root), four_layers(root, tied, **train)
    return verify(recipe, corpus, layouts, steps=steps, precision=precision, console=Silent())


def test_every_axis_and_schedule_alone_equals_one_process(tmp_path: Path) -> None:
    axes = [Layout.model_validate({axis: 2}) for axis in ("data", "shard", "context", "tensor", "pipeline")]
    schedules = [Layout(pipeline=2, schedule=kind) for kind in ("interleaved", "zero-bubble")]
    found = verdicts(tmp_path, *axes, *schedules)
    assert [one.layout for one in found if not one.holds] == []
    assert max(one.gradient.error for one in found) < TOLERANCE["fp32"]["gradient"]


def test_every_axis_alone_equals_one_process_in_bf16(tmp_path: Path) -> None:
    axes = [Layout.model_validate({axis: 2}) for axis in ("data", "shard", "context", "tensor", "pipeline")]
    found = verdicts(tmp_path, *axes, precision="bf16", steps=2)
    assert [one.to_json() for one in found if not one.holds] == []


def test_the_three_way_product_and_others_on_eight_ranks_equal_one_process(tmp_path: Path) -> None:
    layouts = [Layout(data=2, tensor=2, pipeline=2), Layout(shard=2, context=2, tensor=2)]
    assert all(one.holds for one in verdicts(tmp_path, *layouts, tied=False))


@pytest.mark.soak
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_layouts_of_two_four_and_eight_ranks_equal_one_process(
    tmp_path: Path, precision: Precision, tied: bool, optimizer: str
) -> None:
    corpus, recipe = make_corpus(tmp_path), four_layers(tmp_path, tied, optimizer=optimizer)
    layouts = layouts_to_try((2, 4, 8), facts_of_verify(recipe, corpus, [Layout(data=8)]))
    assert len(layouts) > 25
    found = verify(recipe, corpus, layouts, steps=10, precision=precision, console=Silent())
    assert [one.to_json() for one in found if not one.holds] == []


def test_a_lost_bucket_a_wrong_scale_a_shifted_slice_and_a_wrong_update_are_each_found(tmp_path: Path) -> None:
    layouts = [Layout(data=2), Layout(context=2), Layout(tensor=2), Layout(shard=2), Layout(pipeline=2)]
    corpus, recipe = make_corpus(tmp_path), four_layers(tmp_path)
    found = verify(recipe, corpus, layouts, steps=2, console=Silent(), fault=FAULTS)
    assert [one.holds for one in found] == [False, False, False, False, True]
    lost, scaled, shifted, updated, _ = found
    assert lost.gradient.error > 0.1 and shifted.gradient.error > 0.1
    assert scaled.gradient.error == pytest.approx(0.5, rel=1e-3)
    assert updated.change.error > 0.1 and updated.gradient.error < TOLERANCE["fp32"]["gradient"]


@pytest.mark.parametrize(
    ("layout", "reason", "near"),
    [
        (Layout(tensor=8), "4 key-value heads", "tensor: 4"),
        (Layout(pipeline=8), "4 layers cannot be cut into 8 stages", "pipeline: 4"),
        (Layout(context=8), "key-value heads cannot be divided evenly", "context: 4"),
        (Layout(pipeline=4, schedule="interleaved"), "8 stages", "pipeline: 2"),
    ],
)
def test_a_layout_that_cannot_be_says_why_and_which_is_nearest(
    tmp_path: Path, layout: Layout, reason: str, near: str
) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        verdicts(tmp_path, layout)
    assert near in raised.value.fix
