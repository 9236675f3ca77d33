"""Our decoder computes what transformers computes, for each family, in both directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_shapes import VOCABULARY, positions, random_model, small_config, tokens
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional

from sheaf.errors import UsageError
from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Decoder
from sheaf.model.families import load_folder
from sheaf.model.loss import next_token_loss
from sheaf.model.pretrained import export_folder

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=0,
)
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": dict(model_type="llama"),
    "llama-tied-biases": dict(model_type="llama", tie_word_embeddings=True, attention_bias=True, num_key_value_heads=4),
    "llama-llama3-rope": dict(model_type="llama", rope_parameters={"rope_theta": 5e5, **LLAMA3}),
    "llama-linear-rope": dict(
        model_type="llama", rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    ),
    "llama-wide-heads": dict(model_type="llama", head_dim=32),
    "mistral-window": dict(model_type="mistral", sliding_window=20, num_key_value_heads=1),
    "mistral-no-window": dict(model_type="mistral", sliding_window=None),
    "qwen2": dict(model_type="qwen2", tie_word_embeddings=True),
    "qwen2-window": dict(model_type="qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3": dict(model_type="qwen3", head_dim=16),
    "qwen3-biases": dict(model_type="qwen3", head_dim=32, attention_bias=True, tie_word_embeddings=True),
}


def published_model(options: dict[str, Any]) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{**SHAPE, **options})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.15 * noise)
    return model


@torch.no_grad()
def our_logits(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(model(ids, positions(*ids.shape)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_of_transformers_gives_its_logits_and_its_first_loss_here(name: str, tmp_path: Path) -> None:
    theirs = published_model(PUBLISHED[name])
    theirs.save_pretrained(tmp_path, max_shard_size="60KB" if name == "llama" else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == (name == "llama")
    ours = load_folder(tmp_path, torch.float32)
    ids = tokens(2, 150)
    with torch.no_grad():
        expected = theirs(input_ids=ids, labels=ids)
    logits = our_logits(ours, ids)
    assert expected.logits.std() > 0.5, "the logits are too flat to tell models apart"
    assert (logits - expected.logits).abs().max() < 1e-4
    labels = functional.pad(ids[:, 1:], (0, 1), value=-100)
    loss = next_token_loss(ours(ids, positions(2, 150)), ours.head_weight, labels) / (2 * 149)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_config_survives_the_round_trip_and_counts_the_parameters(name: str) -> None:
    theirs = published_model(PUBLISHED[name])
    config = ModelConfig.from_hf(theirs.config.to_dict())
    assert ModelConfig.from_hf(config.to_hf()) == config
    model = Decoder(config)
    assert config.parameters() == sum(p.numel() for p in model.parameters())
    assert config.parameters() == sum(p.numel() for p in theirs.parameters())
    assert set(model.state_dict()) == {
        n for n in theirs.state_dict() if not (config.tie_word_embeddings and "lm_head" in n)
    }


EXPORTED = {
    "llama": small_config("llama", tie_word_embeddings=False, rope_scaling=LLAMA3),
    "mistral": small_config("mistral", sliding_window=20),
    "qwen2": small_config("qwen2", sliding_window=16, window_layers=(False, True), tie_word_embeddings=False),
    "qwen3": small_config("qwen3"),
}


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 20], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("family", EXPORTED)
def test_transformers_loads_what_we_export_and_gives_our_logits_and_token_ids(
    family: str, tmp_path: Path, tokenizer_json: Path
) -> None:
    ours = random_model(EXPORTED[family])
    folder = tmp_path / "exported model"
    export_folder(ours, folder, tokenizer_json, end_of_text=0, dtype=torch.float32)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = tokens(2, 100)
    with torch.no_grad():
        assert (our_logits(ours, ids) - theirs.eval()(input_ids=ids).logits).abs().max() < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "The lazy fox, déjà vu 狐\n"
    assert tokenizer(text)["input_ids"] == Tokenizer.from_file(str(tokenizer_json)).encode(text).ids
    assert tokenizer.eos_token_id == 0 and tokenizer.eos_token == "<|endoftext|>"
    assert theirs.generation_config.eos_token_id == 0
    again = load_folder(folder, torch.float32)
    assert torch.equal(our_logits(again, ids), our_logits(ours, ids))


def test_export_in_bf16_stores_half_the_bytes_and_loads(tmp_path: Path, tokenizer_json: Path) -> None:
    ours = random_model(small_config())
    for name, dtype in (("wide", torch.float32), ("narrow", torch.bfloat16)):
        export_folder(ours, tmp_path / name, tokenizer_json, end_of_text=0, dtype=dtype)
    wide, narrow = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "narrow"))
    assert narrow < 0.55 * wide
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").dtype == torch.bfloat16


def test_export_never_overwrites_a_folder_with_content(tmp_path: Path, tokenizer_json: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        export_folder(random_model(small_config()), tmp_path, tokenizer_json, end_of_text=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_pickled_checkpoint_is_refused_with_the_way_out(tmp_path: Path) -> None:
    published_model(PUBLISHED["llama"]).config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="safetensors") as caught:
        load_folder(tmp_path, torch.float32)
    assert "pickle" in caught.value.what


def test_weights_that_do_not_fit_their_config_are_refused_by_name(tmp_path: Path, tokenizer_json: Path) -> None:
    config = small_config()
    export_folder(random_model(config), tmp_path / "m", tokenizer_json, end_of_text=0)
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    for changed, message in (
        (replace(config, intermediate_size=64), "mlp.*has another shape"),
        (replace(config, num_hidden_layers=3), "lacks 11 tensors, model.layers.2"),
        (replace(config, num_hidden_layers=1), "model lacks: model.layers.1"),
    ):
        folder = tmp_path / f"f{changed.num_hidden_layers}{changed.intermediate_size}"
        export_folder(random_model(changed), folder, tokenizer_json, end_of_text=0)
        (folder / "model.safetensors").write_bytes(weights)
        with pytest.raises(UsageError, match=message):
            load_folder(folder, torch.float32)


@pytest.mark.parametrize("broken", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"\xff" * 64])
def test_a_broken_weight_file_is_a_clear_error(broken: bytes, tmp_path: Path) -> None:
    published_model(PUBLISHED["llama"]).config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(broken)
    with pytest.raises(UsageError):
        load_folder(tmp_path, torch.float32)
