"""What a rank's memory goes to, told before it is taken, against what the tensors of real steps take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import UsageError
from sheaf.model.activations import Live
from sheaf.model.config import ModelConfig
from sheaf.model.recompute import MODES, Recompute
from sheaf.order.loader import Loader
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import How, Spread
from sheaf.parallel.ranks import alone
from sheaf.recipe import Layout, Recipe
from sheaf.train.footprint import Rank, Shape
from sheaf.train.launch import train
from sheaf.train.learner import Learner
from sheaf.train.on_paper import on_paper
from sheaf.train.optimizer import Kind, Update
from sheaf.train.plan import new_values, plan_of
from sheaf.train.settings import Settings
from sheaf.train.setup import DTYPES, exact, order_of

SAMPLES, LENGTH = 8, 64


def recipe_of(root: Path, **train: object) -> Recipe:
    tokens = SAMPLES * LENGTH
    recipe = make_recipe(root, batch_tokens=tokens, micro_batch_tokens=tokens, **train)
    shape = {"hidden_size": 64, "layers": 4, "intermediate_size": 192}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=shape)})


def alike(mode: Recompute, blocks: int = 4) -> tuple[Recompute, ...]:
    return (mode,) * blocks


def most_of_a_step(recipe: Recipe, root: Path, recompute: Recompute | tuple[Recompute, ...]) -> tuple[int, float]:
    """Bytes of all tensors at the peak of a second step, and its loss."""
    corpus, how = make_corpus(root), recipe.train
    live, losses = Live(), list[float]()
    plan, values = new_values(recipe, corpus)
    with exact(2), live:
        spread = Spread(plan.config, DTYPES[how.precision], Mesh(alone(), Layout()), How(recompute=recompute), values)
        update = Update(recipe_kind(recipe), how.weight_decay, how.betas, how.precision)
        learner = Learner(spread, update, how.clip, SAMPLES)
        with Loader(order_of(recipe, corpus, "train"), corpus.token_files(), stop=2) as loader:
            for batch in loader:
                live.most = live.bytes
                losses.append(learner.step(batch, 1e-3).loss)
    return live.most, losses[-1]


@pytest.mark.parametrize(
    ("mode", "precision", "optimizer"),
    [("none", "bf16", "muon"), ("selective", "fp32", "adamw"), ("full", "bf16", "adamw")],
)
def test_what_is_told_is_what_the_tensors_of_a_step_take(
    tmp_path: Path, mode: Recompute, precision: str, optimizer: str
) -> None:
    recipe = recipe_of(tmp_path, precision=precision, optimizer=optimizer)
    taken, _ = most_of_a_step(recipe, tmp_path, mode)
    config = config_of(recipe, tmp_path)
    shape = Shape(SAMPLES, LENGTH, 1, DTYPES[precision])
    footprint = Rank(config, Layout(), 0, shape).footprint(recipe_kind(recipe), alike(mode))
    assert footprint.peak - footprint.copy == pytest.approx(taken, rel=0.1)
    assert footprint.weights == 4 * config.parameters()


def test_a_budget_takes_the_cheapest_mix_that_fits_and_changes_no_loss(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    config = config_of(recipe, tmp_path)
    rank = Rank(config, Layout(), 0, Shape(SAMPLES, LENGTH, 1, DTYPES["fp32"]))
    all_of = {mode: rank.activations(alike(mode)) for mode in MODES}
    chosen = modes_within((all_of["none"] + all_of["selective"]) / 2, recipe, tmp_path)
    assert "none" in chosen and chosen != alike("none")
    assert chosen == tuple(sorted(chosen, key=MODES.index, reverse=True))  # the first layers compute most again
    assert modes_within(all_of["none"] + 100, recipe, tmp_path) == ("none",) * 4
    tight = modes_within(all_of["selective"] * 0.8, recipe, tmp_path)
    assert "full" in tight and tight != ("full",) * 4
    free, expected = most_of_a_step(recipe, tmp_path, "none")
    held, loss = most_of_a_step(recipe, tmp_path, tight)
    assert loss == expected
    assert free - held == pytest.approx(all_of["none"] - rank.activations(tight), rel=0.15)


def test_a_budget_that_cannot_be_kept_is_refused_with_what_it_would_take(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"activations of .* MB do not fit into 0.0100 MB") as raised:
        modes_within(1e4, recipe_of(tmp_path), tmp_path)
    assert "train.micro_batch_tokens below 512" in raised.value.fix


def test_a_run_with_a_budget_says_what_it_chose(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, budget={"steps": 1}, activation_memory="2 MB")
    run = Path(train(recipe, make_corpus(tmp_path), console=Silent())["run"])
    assert "a rank, at most 2 MB allowed: of 2 blocks" in (run / "notes.txt").read_text()


def test_gradients_are_summed_in_fp32_and_all_is_updated_where_it_lies(tmp_path: Path) -> None:
    recipe, corpus = recipe_of(tmp_path, precision="bf16"), make_corpus(tmp_path)
    plan, values = new_values(recipe, corpus)
    with exact(2):
        spread = Spread(plan.config, DTYPES["bf16"], Mesh(alone(), Layout()), How(), values)
        learner = Learner(spread, Update("adamw", 0.1, (0.9, 0.95), "bf16"), 1.0, micro_samples=2)  # four passes

        def places() -> set[tuple[str, int]]:
            gradients = {name: p.grad for name, p in spread.parameters().items() if p.grad is not None}
            assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
            assert len(gradients) == len(spread.held())
            here = [*gradients.items(), *spread.held().items(), *learner.optimizer.state().items()]
            return {(name, tensor.data_ptr()) for name, tensor in here}

        before = places()
        with Loader(order_of(recipe, corpus, "train"), corpus.token_files(), stop=2) as loader:
            for batch in loader:
                learner.step(batch, 1e-3)
        assert places() == before


@pytest.mark.parametrize(
    "layout", [Layout(tensor=2), Layout(shard=2), Layout(context=2), Layout(pipeline=2), Layout(data=2)]
)
def test_a_rank_of_a_layout_takes_its_part(tmp_path: Path, layout: Layout) -> None:
    recipe = recipe_of(tmp_path)
    config = config_of(recipe, tmp_path)
    config = replace(config, num_key_value_heads=2)
    shape = Shape(SAMPLES, LENGTH, 2, DTYPES["fp32"])
    alone = Rank(config, Layout(), 0, shape).footprint("adamw", alike("none"))
    ranks = [Rank(config, layout, number, shape) for number in (0, 1)]
    parts = [rank.footprint("adamw", alike("none", len(rank.blocks))) for rank in ranks]
    weights = sum(part.weights for part in parts)
    if layout.data == 2:
        assert parts[0].weights == parts[1].weights == alone.weights
        assert parts[1].copy == 0
    elif layout.context == 2:
        assert parts[0].weights == alone.weights
        assert parts[0].activations < 0.6 * alone.activations
    else:  # what all hold alike are vectors; the tied embedding is at both ends of a pipeline
        assert alone.weights <= weights < 1.5 * alone.weights
        assert parts[0].optimizer == 2 * parts[0].weights


def modes_within(budget_bytes: float, recipe: Recipe, root: Path) -> tuple[Recompute, ...]:
    budget = recipe.train.model_copy(update={"activation_memory": f"{budget_bytes / 1e6:.4f} MB"})
    corpus = make_corpus(root)
    settings = Settings(1, SAMPLES, SAMPLES * LENGTH, "adamw", 1e-3, 1, 1, False, 0, 2)
    paper = on_paper(plan_of(recipe, corpus), budget, settings, Layout(), 0)
    assert paper is not None
    return paper.modes


def config_of(recipe: Recipe, root: Path) -> ModelConfig:
    config = plan_of(recipe, make_corpus(root)).config
    assert isinstance(config, ModelConfig)
    return config


def recipe_kind(recipe: Recipe) -> Kind:
    return "adamw" if recipe.train.optimizer == "adamw" else "muon"
