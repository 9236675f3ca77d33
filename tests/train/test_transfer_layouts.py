"""What learns in part, slowly, beside a base, or by averages, under layouts: as one process has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_layouts import four_layers
from training_corpus import VOCABULARY, make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import EnvironmentProblem, UsageError
from sheaf.model.config import preset
from sheaf.model.decoder import Decoder
from sheaf.model.init import initialise
from sheaf.model.pretrained import _write_model
from sheaf.recipe import Layout, ModelSpec, Recipe
from sheaf.train.verify import verify

AXES = [Layout.model_validate({axis: 2}) for axis in ("data", "shard", "context", "tensor", "pipeline")]
SCHEDULES = [Layout(pipeline=2, schedule=kind) for kind in ("interleaved", "zero-bubble")]
MOE = transformers.MixtralConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=1, max_position_embeddings=64,
)  # fmt: skip
IDLE = transformers.GPT2Config(
    vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
    add_cross_attention=True,
)  # fmt: skip
STATE_SPACE = transformers.MambaConfig(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4, bos_token_id=0, eos_token_id=0
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def not_held(recipe: Recipe, root: Path, layouts: list[Layout], steps: int = 2) -> list[dict[str, Any]]:
    found = verify(recipe, make_corpus(root), layouts, steps=steps, console=Silent())
    return [one.to_json() for one in found if not one.holds]


def from_folder(recipe: Recipe, root: Path, **more: Any) -> Recipe:
    model = ModelSpec.model_validate({"from": str(root / "base"), **more})
    return recipe.model_copy(update={"model": model})


def base(root: Path) -> Path:
    """A Qwen3 of four layers."""
    shape: Mapping[str, Any] = {"hidden_size": 64, "layers": 4, "heads": 4, "kv_heads": 4, "intermediate_size": 96}
    model = Decoder(preset("tiny", vocab_size=VOCABULARY, max_positions=64, end_of_text=0, **shape))
    initialise(model, 1)
    (root / "base").mkdir()
    _write_model(model, root / "base", 0, torch.float32, ())
    return root


def of_others(root: Path, config: Any) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / "base")
    return root


def test_parts_frozen_and_slow_and_averages_are_the_same_under_every_axis_and_schedule(tmp_path: Path) -> None:
    """Of four interleaved stages the first is frozen as a whole."""
    settings = {"freeze": ["model.embed_tokens*", "model.layers.0.*", "*.q_proj.*"], "rates": {"model.layers.3.*": 0.5}}
    recipe = four_layers(tmp_path, optimizer="schedule-free", **settings)
    assert not_held(recipe, tmp_path, [*AXES, *SCHEDULES]) == []


def test_muon_has_its_rates_where_no_rank_holds_a_matrix(tmp_path: Path) -> None:
    recipe = four_layers(tmp_path, optimizer="muon", rates={"*.down_proj.*": 0.1}, freeze=["*.up_proj.*"])
    assert not_held(recipe, tmp_path, [Layout(shard=2), Layout(tensor=2)]) == []


def test_adapters_are_the_same_under_every_layout_that_knows_them(tmp_path: Path) -> None:
    lora = {"rank": 4, "targets": ["q_proj", "down_proj"], "full": ["embed_tokens", "v_proj"]}
    recipe = from_folder(make_recipe(tmp_path), base(tmp_path), lora=lora)
    layouts = [one for one in (*AXES, *SCHEDULES) if one.tensor == 1]
    assert not_held(recipe, tmp_path, layouts) == []
    with pytest.raises(UsageError, match="spread in this way") as raised:
        not_held(recipe, tmp_path, [Layout(tensor=2)])
    assert "does not know adapters" in raised.value.why and "layout of 2 ranks: {" in raised.value.fix


@pytest.mark.parametrize("config", [IDLE, pytest.param(MOE, marks=pytest.mark.soak)], ids=lambda c: c.model_type)
def test_models_of_other_families_are_sharded_though_weights_lie_idle(config: Any, tmp_path: Path) -> None:
    recipe = from_folder(make_recipe(tmp_path), of_others(tmp_path, config))
    assert not_held(recipe, tmp_path, [Layout(data=2), Layout(shard=2)], steps=1) == []
    with pytest.raises(UsageError, match="spread in this way") as raised:
        not_held(recipe, tmp_path, [Layout(pipeline=2)])
    assert "by data and shard only" in raised.value.why


@pytest.mark.soak
def test_rows_of_their_own_are_not_sharded(tmp_path: Path) -> None:
    recipe = from_folder(make_recipe(tmp_path), of_others(tmp_path, STATE_SPACE))
    with pytest.raises(EnvironmentProblem) as raised:
        not_held(recipe, tmp_path, [Layout(shard=2)], steps=1)
    assert "cannot be sharded" in raised.value.why and "{data: 2}" in raised.value.why
