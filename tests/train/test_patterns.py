"""Parameters by name: what a pattern decides, and what is said of one that decides nothing."""

from __future__ import annotations

import pytest

from sheaf.errors import RecipeError
from sheaf.train.patterns import check_rates, factor_of, frozen

NAMES = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.10.mlp.up_proj.weight"]


def test_the_first_pattern_that_matches_counts() -> None:
    rates = {"model.layers.0.*": 0.1, "model.layers.*": 0.5}
    check_rates(NAMES, rates)
    assert [factor_of(name, rates) for name in NAMES] == [1.0, 0.1, 0.5]


def test_a_pattern_behind_a_wider_one_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"layers\.0.* that an earlier pattern has left") as caught:
        check_rates(NAMES, {"model.layers.*": 0.5, "model.layers.0.*": 0.1})
    assert "before" in caught.value.fix


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("model.embed_token.*", "model.embed_tokens"),
        ("model.layer.0.*", "model.layers.0"),
        ("model.layers.10.mpl.*", "model.layers.10.mlp.*"),
        ("zzz", "safetensors"),
    ],
)
def test_a_pattern_that_matches_nothing_is_told_with_the_nearest(pattern: str, near: str) -> None:
    with pytest.raises(RecipeError, match="matches no parameter") as caught:
        frozen(NAMES, [pattern])
    assert near in caught.value.fix


def test_something_must_be_left_to_train() -> None:
    assert frozen(NAMES, ["*embed*"]) == {NAMES[0]}
    with pytest.raises(RecipeError, match="nothing is left"):
        frozen(NAMES, ["*embed*", "model.layers.*"])
