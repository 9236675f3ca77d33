"""A narrow model's learning rate suits a wide one, once the rule has been applied."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sheaf.errors import UsageError
from sheaf.model.config import ModelConfig, of_preset
from sheaf.model.decoder import Decoder
from sheaf.model.init import initialise
from sheaf.recipe import ModelSpec, Recipe, SourceSpec
from sheaf.recipe_marks import with_values
from sheaf.recipe_yaml import Tree
from sheaf.train.optimizer import Kind, Optimizer, Update
from sheaf.tune.width import narrowed, transferred

NARROW, VOCABULARY, LENGTH, ROWS, STEPS = 32, 64, 32, 8, 40
GRID = [2.0**k for k in range(-3, 4)]
CENTRE: dict[Kind, float] = {"adamw": 2e-2, "muon": 4e-2}  # about what suits the narrow one


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices as small as these are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe_of(width: int, tied: bool) -> Recipe:
    shape = {"hidden_size": width, "layers": 2, "heads": width // 16, "kv_heads": width // 16, "tied": tied}
    spec = ModelSpec(preset="tiny", intermediate_size=2 * width, **shape)
    return Recipe(name="w", sources=(SourceSpec(name="a", uri="/a"),), model=spec, workspace="/w")


def config_of(recipe: Recipe) -> ModelConfig:
    return of_preset(recipe.model, vocab_size=VOCABULARY, max_positions=LENGTH, end_of_text=0)


def settings_at(width: int, optimizer: Kind, tied: bool, rate: float, rule: bool) -> dict[str, Any]:
    """The training part for a model of that width, from a rate that was found at NARROW."""
    recipe = recipe_of(width, tied)
    if not rule or width == NARROW:
        return {"learning_rate": rate, "weight_decay": recipe.train.weight_decay, "rates": {}}
    said = transferred(recipe, optimizer, config_of(recipe), width=NARROW, rate=rate)
    return with_values(Tree({"train": {}}), said)["train"]


def batch(step: int) -> Tensor:
    """Walks with a stride of their own: the next token can be learned from the two before it."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(VOCABULARY, (ROWS, 1), generator=generator)
    stride = torch.randint(1, 6, (ROWS, 1), generator=generator)
    return (start + stride * torch.arange(LENGTH + 1)) % VOCABULARY


def trained(width: int, optimizer: Kind, tied: bool, said: dict[str, Any], steps: int) -> tuple[Decoder, float]:
    """A model after so many steps, and its mean loss over the last quarter of them."""
    model = Decoder(config_of(recipe_of(width, tied)))
    initialise(model, seed=1)
    update = Update(optimizer, said["weight_decay"], (0.9, 0.95), "fp32", said["rates"])
    optimiser, losses = Optimizer(model.named_parameters(), update), list[float]()
    for step in range(steps):
        model.zero_grad(set_to_none=True)
        ids = batch(step)
        loss = functional.cross_entropy(logits(model, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimiser.step(said["learning_rate"] * (1 - step / steps))
        losses.append(loss.item())
    last = losses[-max(1, steps // 4) :]
    return model, sum(last) / max(1, len(last))


def logits(model: Decoder, ids: Tensor) -> Tensor:
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    return model(ids, torch.arange(ids.size(1)).expand_as(ids)) @ head.weight.T


def moved(width: int, optimizer: Kind, tied: bool, rule: bool) -> float:
    """How far the logits of a batch are moved by the first steps: root of the mean square."""
    said, ids = settings_at(width, optimizer, tied, CENTRE[optimizer] / 8, rule), batch(99)[:, :-1]
    start, after = (trained(width, optimizer, tied, said, steps)[0] for steps in (0, 3))
    with torch.no_grad():
        return (logits(after, ids) - logits(start, ids)).square().mean().sqrt().item()


@functools.cache
def best(width: int, optimizer: Kind, tied: bool, rule: bool) -> int:
    """Which rate of the grid suits a width best, by its place."""
    losses = []
    for factor in GRID:
        said = settings_at(width, optimizer, tied, CENTRE[optimizer] * factor, rule)
        losses.append(trained(width, optimizer, tied, said, STEPS)[1])
    return losses.index(min(losses))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_first_steps_move_a_wide_model_as_far_as_a_narrow_one(optimizer: Kind, tied: bool) -> None:
    narrow = moved(NARROW, optimizer, tied, rule=True)
    ruled, same = (moved(4 * NARROW, optimizer, tied, rule) / narrow for rule in (True, False))
    # An own head starts at N(0, 0.02²) at every width, so what moves before it counts √width times as much; no rate
    # changes that. A tied one is as slow as it has to be.
    assert 0.6 < ruled < (1.4 if tied else 2.1)
    assert same > (1.8 if tied else 1.2) * ruled


@pytest.mark.soak
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_best_rate_of_a_narrow_model_is_the_best_at_two_larger_widths_within_a_step_of_the_grid(
    optimizer: Kind, tied: bool
) -> None:
    found = [best(width, optimizer, tied, rule=True) for width in (NARROW, 2 * NARROW, 4 * NARROW)]
    assert max(found) - min(found) <= 1
    assert 0 < found[0] < len(GRID) - 1  # inside the grid, or nothing would be shown
    if optimizer == "adamw" or tied:  # by theory Muon's shift, with a head of its own, is a step or two
        assert found[0] - best(4 * NARROW, optimizer, tied, rule=False) >= 2


def test_a_narrow_model_is_the_wide_one_in_proportion_with_heads_as_large() -> None:
    spec = ModelSpec(preset="small")
    wide = of_preset(spec, vocab_size=VOCABULARY, max_positions=LENGTH, end_of_text=0)
    small = narrowed(spec, wide, 128)
    assert (small.hidden_size, small.heads, small.kv_heads, small.intermediate_size, small.layers) == (
        *(128, 2, 1, 352),
        wide.num_hidden_layers,
    )
    with pytest.raises(UsageError, match="width 512 is not tried at 100") as raised:
        narrowed(spec, wide, 100)
    assert "64, 128, 192, 256" in raised.value.fix


def test_the_rule_is_said_in_the_recipes_own_words() -> None:
    recipe = recipe_of(4 * NARROW, tied=False)
    said = with_values(Tree({}), transferred(recipe, "muon", config_of(recipe), width=NARROW, rate=0.04))["train"]
    assert said["learning_rate"] == 0.02  # ∝ 1/√width
    assert said["rates"] == {"*norm*": 2.0, "*embed_tokens*": 2.0, "lm_head*": 0.5}
    assert said["weight_decay"] == 0.2
