"""The updates against plain float64 references, and the state's way through a checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sheaf.train.muon import MOMENTUM, orthogonalise
from sheaf.train.optimizer import Optimizer, Update, default_rate

SHAPES = {
    "model.embed_tokens.weight": (12, 6),
    "model.layers.0.mlp.up_proj.weight": (10, 6),
    "model.layers.0.self_attn.q_proj.weight": (6, 8),
    "model.norm.weight": (6,),
    "lm_head.weight": (12, 6),
}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def set_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def update(optimizer: str, precision: str = "fp32") -> Update:
    return Update(optimizer, weight_decay=0.1, betas=(0.9, 0.95), precision=precision)  # type: ignore[arg-type]


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def reference(optimizer: str, steps: int, rate: float) -> dict[str, np.ndarray]:
    """Both methods as their papers write them, in float64, one parameter at a time."""
    named = parameters()
    values = {name: p.detach().double().numpy().copy() for name, p in named.items()}
    first = {name: np.zeros_like(v) for name, v in values.items()}
    second = {name: np.zeros_like(v) for name, v in values.items()}
    for step in range(steps):
        set_gradients(named, step)
        for name, w in values.items():
            g = named[name].grad.double().numpy()
            if optimizer == "muon" and ".layers." in name:
                first[name] = MOMENTUM * first[name] + (1 - MOMENTUM) * g
                look_ahead = (1 - MOMENTUM) * g + MOMENTUM * first[name]
                w *= 1 - rate * 0.1
                w -= rate * 0.2 * math.sqrt(max(w.shape)) * newton_schulz(look_ahead)
                continue
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            if w.ndim == 2 and "embed_tokens" not in name:
                w *= 1 - rate * 0.1
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
            w -= rate * m / (np.sqrt(v) + 1e-8)
    return values


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_update_is_that_of_the_paper(optimizer: str) -> None:
    named = parameters()
    ours = Optimizer(named.items(), update(optimizer))
    for step in range(6):
        set_gradients(named, step)
        ours.step(0.03)
    for name, expected in reference(optimizer, 6, 0.03).items():
        np.testing.assert_allclose(named[name].detach().numpy(), expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)])
def test_orthogonalising_leaves_directions_and_levels_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    for dtype in (torch.float32, torch.bfloat16):
        got = orthogonalise(matrix.to(dtype)).float()
        lengths = torch.linalg.svdvals(got)
        assert got.shape == shape
        assert lengths.max() < 1.3 and lengths.median() > 0.65
        assert (u.T @ got @ vh.T).diagonal().median() > 0.65  # along the same singular vectors


def test_muons_update_has_the_size_of_adamws() -> None:
    named = {name: nn.Parameter(torch.zeros(256, 96)) for name in ("model.layers.0.w", "lm_head.weight")}
    for parameter in named.values():
        parameter.grad = torch.randn(256, 96, generator=torch.Generator().manual_seed(0))
    Optimizer(named.items(), update("muon")).step(1.0)
    size = named["model.layers.0.w"].detach().square().mean().sqrt().item()
    assert 0.12 < size < 0.3  # 0.2 is AdamW's usual root mean square


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_saved_state_goes_on_bit_for_bit(optimizer: str) -> None:
    calm, broken = parameters(), parameters()
    one, two = Optimizer(calm.items(), update(optimizer, "bf16")), Optimizer(broken.items(), update(optimizer, "bf16"))
    for step in range(3):
        set_gradients(calm, step)
        one.step(0.01)
        set_gradients(broken, step)
        two.step(0.01)
    fresh = Optimizer(broken.items(), update(optimizer, "bf16"))
    saved = {name: tensor.clone() for name, tensor in two.state().items()}
    fresh.load(lambda key, piece: saved[key][piece.slices], two.updates)
    for step in range(3, 6):
        set_gradients(calm, step)
        one.step(0.01)
        set_gradients(broken, step)
        fresh.step(0.01)
    assert all(torch.equal(calm[name], broken[name]) for name in calm)
    assert fresh.updates == 6


def test_the_default_rate_falls_with_size_and_names_its_source() -> None:
    rates = [default_rate("adamw", n)[0] for n in (10**6, 10**7, 10**8)]
    assert rates == sorted(rates, reverse=True)
    assert "Kaplan" in default_rate("muon", 10**7)[1]
