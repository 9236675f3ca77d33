"""Adapters beside our decoder and others: peft computes what we compute, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from model_shapes import VOCABULARY, positions, random_model, small_config, tokens

from sheaf.errors import CorruptStore, RecipeError, UsageError
from sheaf.model.adapters import Lora, attach, built, check_base, digest_of_base, merge, new_factors, stored, trained
from sheaf.model.compile import compile_decoder
from sheaf.model.families import Model, fill, folder_values, load_folder
from sheaf.model.peft_folder import lora_of, write_adapters
from sheaf.model.peft_folder import with_adapters as adapters_of
from sheaf.model.pieces import Values
from sheaf.model.pretrained import _write_model
from sheaf.recipe import LoraSpec

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "phi"]
OTHERS = {
    "gpt2": transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2),
    "phi": transformers.PhiConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    ),
}


def base_folder(folder: Path, family: str) -> Path:
    folder.mkdir(exist_ok=True)
    if family in OTHERS:
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(OTHERS[family]).save_pretrained(folder)
    else:
        model = random_model(small_config(family, tie_word_embeddings=family == "qwen3"))
        _write_model(model, folder, 0, torch.float32, ())
    return folder


def beside(folder: Path, lora: Lora, change: Callable[[Values, Model], Values]) -> Model:
    """A folder's model with adapters that `change` gives values to."""
    config, base = folder_values(folder)
    model = built(config, torch.float32, lora)
    fill(model, change(base, model))
    return model


def with_adapters(folder: Path, lora: Lora, seed: int = 1) -> Model:
    """Adapters that do something: B is not zero."""
    model = beside(folder, lora, lambda base, _: new_factors(base, seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained(model).items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif "lora_A" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: Model) -> torch.Tensor:
    return model.logits(model(tokens(2, 40), positions(2, 40)))


def in_peft(base: Path, adapters: Path) -> Any:
    net = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return peft.PeftModel.from_pretrained(net, str(adapters)).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_the_same_with_adapters_that_we_wrote(family: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", family)
    model = with_adapters(base, Lora(4, 12.0, base=str(base)))
    (tmp_path / "out").mkdir()
    write_adapters(model, tmp_path / "out", torch.float32)
    with torch.no_grad():
        theirs = in_peft(base, tmp_path / "out")(tokens(2, 40)).logits
        plain = logits(load_folder(base, torch.float32))
        torch.testing.assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)
    assert (plain - theirs).abs().max() > 0.01


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_we_compute_the_same_with_adapters_that_peft_wrote(family: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", family)
    net = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "v_proj", "up_proj"]
    torch.manual_seed(3)
    theirs: Any = peft.get_peft_model(
        net,
        peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=targets, lora_dropout=0.1, use_rslora=True, init_lora_weights=False
        ),
    ).eval()
    theirs.save_pretrained(str(tmp_path / "peft"))
    lora = lora_of(LoraSpec.model_validate({"from": str(tmp_path / "peft")}))
    assert (lora.rank, lora.alpha, set(lora.targets)) == (3, 5.0, set(targets))
    model = beside(base, lora, lambda values, model: adapters_of(values, model, tmp_path / "peft"))
    with torch.no_grad():
        torch.testing.assert_close(logits(model), theirs(tokens(2, 40)).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_modules_that_are_trained_whole_travel_with_the_adapters(family: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", family)
    full = {"qwen3": ("embed_tokens",), "llama": ("embed_tokens", "lm_head"), "gpt2": ("wte",)}[family]
    model = with_adapters(base, Lora(4, 8.0, full=full, base=str(base)))
    (tmp_path / "out").mkdir()
    write_adapters(model, tmp_path / "out", torch.float32)
    with torch.no_grad():
        theirs = in_peft(base, tmp_path / "out")(tokens(2, 40)).logits
        torch.testing.assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)
        lora = lora_of(LoraSpec.model_validate({"from": str(tmp_path / "out")}))
        again = beside(base, lora, lambda values, model: adapters_of(values, model, tmp_path / "out"))
        torch.testing.assert_close(logits(again), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_merged_weights_compute_what_the_adapters_did(family: str, tmp_path: Path) -> None:
    model = with_adapters(base_folder(tmp_path / "base", family), Lora(4, 12.0))
    with torch.no_grad():
        before = logits(model)
        merge(model)
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_only_adapters_learn_and_are_stored(tmp_path: Path) -> None:
    model = with_adapters(base_folder(tmp_path / "base", "qwen3"), Lora(4, 12.0, targets=("q_proj", "down_proj")))
    model.next_token_loss(model(tokens(2, 40), positions(2, 40)), tokens(2, 40, seed=1)).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == set(trained(model)) == set(stored(model))
    assert {name.split(".")[-3] for name in with_gradient} == {"q_proj", "down_proj"}


def test_frozen_matrices_in_the_compute_dtype_change_no_bit(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "qwen3")
    models = [load_folder(base, torch.bfloat16) for _ in range(2)]
    attach(models[0], Lora(4, 8.0))  # B is zero: it computes what the plain one does
    kinds = {p.dtype for p in models[0].parameters() if p.ndim == 2 and not p.requires_grad}
    assert kinds == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(*[m(tokens(2, 40), positions(2, 40)) for m in models])


@pytest.mark.soak
def test_compiled_layers_with_adapters_compute_the_same(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "qwen3")
    models = [with_adapters(base, Lora(4, 12.0, targets=("q_proj", "v_proj", "up_proj"))) for _ in range(2)]
    compile_decoder(models[1], "on")
    for model in models:
        model.next_token_loss(model(tokens(2, 40), positions(2, 40)), tokens(2, 40, seed=1)).backward()
    for name, parameter in trained(models[0]).items():
        torch.testing.assert_close(trained(models[1])[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_a_name_that_fits_nothing_is_told_with_the_nearest(tmp_path: Path) -> None:
    model = random_model(small_config())
    with pytest.raises(RecipeError, match="q_prj") as caught:
        attach(model, Lora(4, 8.0, targets=("q_prj",)))
    assert "q_proj" in caught.value.fix
    with pytest.raises(RecipeError, match="embed_token'"):
        attach(model, Lora(4, 8.0, full=("embed_token",)))


@pytest.mark.parametrize("change", [{"use_dora": True}, {"rank_pattern": {"q_proj": 8}}, {"bias": "all"}])
def test_adapters_that_compute_something_else_are_refused_by_name(change: dict[str, Any], tmp_path: Path) -> None:
    peft.LoraConfig(r=2, target_modules=["q_proj"], **change).save_pretrained(str(tmp_path))
    with pytest.raises(UsageError, match=next(iter(change))):
        lora_of(LoraSpec.model_validate({"from": str(tmp_path)}))


def test_a_base_that_changed_is_noticed(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "qwen3")
    lora = Lora(4, 8.0, base=str(base), digest=digest_of_base(base))
    check_base(lora)
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(CorruptStore, match="has changed"):
        check_base(lora)
    (base / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights"):
        check_base(lora)
