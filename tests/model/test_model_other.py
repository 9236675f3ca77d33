"""Models of other families by transformers' code: our loss is theirs, and documents of one row never meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import transformers
from model_shapes import VOCABULARY
from torch.nn import functional

from sheaf.errors import UsageError
from sheaf.model.adapters import Lora, attach
from sheaf.model.families import load_folder, read_config
from sheaf.model.generate import generate
from sheaf.model.other import OtherModel
from sheaf.model.other_config import OtherConfig

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
WINDOW: dict[str, Any] = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
GROUPED: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 16}
CONFIGS: dict[str, Any] = {
    "gpt2": transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL, max_position_embeddings=64),
    "phi": transformers.PhiConfig(**SMALL),  # its head has a bias
    "gemma2": transformers.Gemma2Config(**SMALL, **GROUPED, **WINDOW),  # caps its logits; windows
    "bloom": transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2),  # no position ids
    "mamba": transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
}
PACKED = ["gpt2", "gpt_neox", "phi", "gemma2"]
LENGTHS = [11, 3, 14, 1, 7, 4]  # the last is padding


def folder_of(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(CONFIGS[family])
    with torch.no_grad():
        for parameter in net.parameters():  # attention far from uniform, biases not zero
            parameter.add_(0.1 * torch.randn(parameter.shape))
    net.save_pretrained(folder)
    return folder


def packed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of six documents each: ids, positions, documents, labels, as the loader gives them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (2, sum(LENGTHS)), generator=generator)
    positions = torch.cat([torch.arange(n) for n in LENGTHS]).expand(2, -1)
    documents = torch.cat([torch.full((n,), i if i < 5 else -1) for i, n in enumerate(LENGTHS)]).expand(2, -1)
    labels = torch.where(documents >= 0, torch.roll(ids, -1, 1), -100)
    return ids, positions, documents, labels


@pytest.mark.parametrize("family", [*PACKED, "bloom"])
def test_packed_documents_get_the_loss_and_gradient_that_they_get_alone(family: str, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path)
    model, theirs = load_folder(folder, torch.float32), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert isinstance(model, OtherModel) and model.isolation == ("packed" if family in PACKED else "rows")
    ids, positions, documents, labels = packed()
    loss = model.next_token_loss(model(ids, positions, documents), labels)
    loss.backward()
    expected = torch.zeros(())
    for row in range(2):
        for number in range(5):
            here = documents[row] == number
            logits = theirs(ids[row, here][None]).logits[0].float()
            expected = expected + functional.cross_entropy(logits, labels[row, here], reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    gradients = dict(model.named_parameters())
    for name, parameter in theirs.named_parameters():
        largest = parameter.grad.abs().max().item()
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-3, atol=1e-5 * largest + 1e-7)
    alone = model.per_token_loss(model(ids, positions, documents).detach(), labels)
    assert alone.sum().item() == pytest.approx(expected.item(), rel=1e-5) and not alone[labels == -100].any()


@pytest.mark.parametrize("family", ["gemma2", "mamba"])
def test_a_document_does_not_know_its_neighbours(family: str, tmp_path: Path) -> None:
    model = load_folder(folder_of(family, tmp_path), torch.float32)
    ids, positions, documents, _ = packed()
    others, _, _, _ = packed(1)
    mine = documents == 2
    with torch.no_grad():
        one, two = (model(torch.where(mine, ids, x), positions, documents)[mine] for x in (ids, others))
    assert torch.equal(one, two)


def test_what_sees_its_neighbours_is_refused(tmp_path: Path) -> None:
    """A model whose mask ignores what it is told, and that sees later tokens, has no way to be isolated."""
    model = load_folder(folder_of("gpt2", tmp_path), torch.float32)
    assert isinstance(model, OtherModel)
    plain, leak = model.net.transformer.ln_f.forward, 0.01
    model.net.transformer.ln_f.forward = lambda x: plain(x) + leak * x.mean(1, keepdim=True)
    with pytest.raises(UsageError, match="see each other"):
        _ = model.isolation


def test_generation_with_a_cache_takes_the_likeliest_token_of_the_whole_text(tmp_path: Path) -> None:
    for family in ("gpt2", "mamba"):
        model = load_folder(folder_of(family, tmp_path / family), torch.float32)
        ids = [5, 9, 77, 3]
        said = list(generate(model, ids, max_tokens=6, temperature=0, top_p=1.0, seed=0, stop_ids=()))
        for token in said:
            row = torch.tensor([ids])
            with torch.no_grad():
                likeliest = model.logits(model(row, torch.arange(len(ids))[None])[0, -1]).argmax()
            assert token == int(likeliest)
            ids.append(token)


def test_adapters_of_another_family_learn_alone(tmp_path: Path) -> None:
    model = load_folder(folder_of("gpt_neox", tmp_path), torch.float32)
    lora = attach(model, Lora(4, 8.0))
    assert set(lora.targets) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    ids, positions, documents, labels = packed()
    model.next_token_loss(model(ids, positions, documents), labels).backward()
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.grad is not None} == {"lora_A", "lora_B"}


def test_a_scaling_that_the_decoder_has_not_is_left_to_transformers(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    config = transformers.LlamaConfig(**SMALL, max_position_embeddings=64, rope_parameters=rope)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert isinstance(read_config(tmp_path), OtherConfig)
    model = load_folder(tmp_path, torch.float32)
    assert isinstance(model, OtherModel) and model.isolation == "packed"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model_type": "own", "auto_map": {"AutoModelForCausalLM": "code.Model"}}, "own"),
        ({"model_type": "t5"}, "not a decoder"),
        ({"model_type": "gpt2", "quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_what_is_no_causal_model_is_refused_and_no_code_of_it_is_run(
    content: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "code.py").write_text("raise SystemExit('code of a folder was run')")
    (tmp_path / "config.json").write_bytes(orjson.dumps(content))
    with pytest.raises(UsageError, match=reason) as caught:
        read_config(tmp_path)
        load_folder(tmp_path, torch.float32)
    assert "cannot be trained here" in caught.value.what


def test_pickled_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    CONFIGS["gpt2"].save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="pickle"):
        load_folder(tmp_path, torch.float32)
