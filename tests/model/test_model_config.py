"""What a recipe or a config.json asks for is what is built, or it is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from model_shapes import small_config

from sheaf import recipe_file
from sheaf.errors import RecipeError, UsageError
from sheaf.model.config import ModelConfig, of_preset, preset
from sheaf.recipe import ModelSpec

PUBLISHED: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
COMMON: dict[str, Any] = {"max_positions": 512, "end_of_text": 0}


@pytest.mark.parametrize(("name", "millions"), [("tiny", 5), ("small", 25), ("base", 125)])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_presets_have_the_size_that_their_name_promises(name: str, millions: float, family: str) -> None:
    config = preset(name, vocab_size=16384, family=family, **COMMON)
    assert config.parameters() / 1e6 == pytest.approx(millions, rel=0.08)
    assert config.hidden_size % 64 == 0 and config.intermediate_size % 64 == 0 and config.head_dim == 64


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mixtral"}, "model_type is mixtral"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is yarn"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "rope_type is dynamic"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"head_dim": 15}, "15 dimensions"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ModelConfig.from_hf({**PUBLISHED, **change})


def test_a_config_that_lacks_a_dimension_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="hidden_size"):
        ModelConfig.from_hf({key: value for key, value in PUBLISHED.items() if key != "hidden_size"})


def test_both_spellings_of_rotary_settings_mean_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    flat = {**PUBLISHED, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}
    nested = {**PUBLISHED, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **scaling}}
    assert ModelConfig.from_hf(flat) == ModelConfig.from_hf(nested)
    assert ModelConfig.from_hf(flat).rope_theta == 5e5


def test_flops_are_six_a_weight_that_multiplies_and_twelve_for_attention() -> None:
    config = small_config("llama", tie_word_embeddings=True)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * 100
    assert config.flops_per_token(100) == 6 * (config.parameters() - norms) + attention


def test_a_recipes_changes_reach_the_model() -> None:
    spec = ModelSpec(preset="small", family="llama", layers=3, heads=4, hidden_size=256, tied=False)
    config = of_preset(spec, vocab_size=1000, **COMMON)
    assert (config.num_hidden_layers, config.num_attention_heads, config.head_dim) == (3, 4, 64)
    assert config.intermediate_size == 704 and not config.tie_word_embeddings
    assert of_preset(ModelSpec(), vocab_size=1000, **COMMON).hidden_size == 192


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (ModelSpec(preset="tiny", hidden_size=100, heads=3), "100 cannot be split into 3"),
        (ModelSpec(preset="tiny", heads=3, kv_heads=2), "2 key-value heads"),
    ],
)
def test_an_impossible_shape_is_refused_with_its_numbers(spec: ModelSpec, named: str) -> None:
    with pytest.raises((RecipeError, UsageError), match=named):
        of_preset(spec, vocab_size=1000, **COMMON)


def test_an_unknown_preset_is_refused_by_the_recipe_and_by_the_model(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'tinny'"):
        preset("tinny", vocab_size=512, **COMMON)
    text = "name: a\nsources:\n  - {name: b, uri: .}\nmodel: {preset: tny}\n"
    with pytest.raises(RecipeError) as caught:
        recipe_file.loads(text, tmp_path)
    assert "tiny" in str(caught.value) and ":4" in str(caught.value)
