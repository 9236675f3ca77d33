"""The updates against plain float64 references, and the state's way through a checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sheaf.train.muon import MOMENTUM, orthogonalise
from sheaf.train.optimizer import Optimizer, Update, choose, default_rate

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


def update(optimizer: str, precision: str = "fp32", rates: dict[str, float] | None = None) -> Update:
    return Update(optimizer, 0.1, (0.9, 0.95), precision, rates or {})  # type: ignore[arg-type]


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


def test_schedule_free_is_that_of_the_paper() -> None:
    """Algorithm 1 as it stands, with x, y and z apart, in float64."""
    named = parameters()
    ours = Optimizer(named.items(), update("schedule-free"))
    z = {name: p.detach().double().numpy().copy() for name, p in named.items()}
    x, v, weights = {n: w.copy() for n, w in z.items()}, {n: np.zeros_like(w) for n, w in z.items()}, 0.0
    for step, rate in enumerate([0.01, 0.02, 0.03, 0.03, 0.03, 0.03]):
        set_gradients(named, step)
        weights += rate**2
        for name in z:
            g, y = named[name].grad.double().numpy(), 0.1 * z[name] + 0.9 * x[name]
            np.testing.assert_allclose(named[name].detach().numpy(), y, rtol=1e-4, atol=1e-5)
            v[name] = 0.95 * v[name] + 0.05 * g * g
            decay = 0.1 if y.ndim == 2 and "embed_tokens" not in name else 0.0
            z[name] -= rate * (g / (np.sqrt(v[name] / (1 - 0.95 ** (step + 1))) + 1e-8) + decay * y)
            x[name] += rate**2 / weights * (z[name] - x[name])
        ours.step(rate)
    trained = {name: p.detach().clone() for name, p in named.items()}
    with ours.as_evaluated():
        for name, p in named.items():
            np.testing.assert_allclose(p.detach().numpy(), x[name], rtol=1e-4, atol=1e-5)
            assert torch.equal(ours.state()[f"y.{name}"], trained[name])  # what a checkpoint stores is what is trained
    assert all(torch.equal(p, trained[name]) for name, p in named.items())


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "schedule-free"])
def test_rates_by_name_are_factors_and_the_first_pattern_counts(optimizer: str) -> None:
    rates = {"*.0.mlp.*": 0.5, "model.layers.*": 2.0}
    for pattern, factor in {"mlp.up": 0.5, "self_attn": 2.0, "lm_head": 1.0}.items():
        plain, changed = parameters(), parameters()
        for named, by, rate in ((plain, {}, 0.02 * factor), (changed, rates, 0.02)):
            set_gradients(named, 0)
            Optimizer(named.items(), update(optimizer, rates=by)).step(rate)
        for name in plain:
            assert torch.equal(plain[name], changed[name]) or pattern not in name


def test_low_rank_factors_are_not_orthogonalised() -> None:
    factors = {"model.layers.0.self_attn.q_proj.lora_A.weight": nn.Parameter(torch.ones(2, 8))}
    assert set(Optimizer(factors.items(), update("muon")).state()) == {
        f"{k}.{n}" for k in ("exp_avg", "exp_avg_sq") for n in factors
    }


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "schedule-free"])
def test_a_saved_state_goes_on_bit_for_bit(optimizer: str) -> None:
    calm, broken = parameters(), parameters()
    one, two = Optimizer(calm.items(), update(optimizer, "bf16")), Optimizer(broken.items(), update(optimizer, "bf16"))
    for step in range(3):
        set_gradients(calm, step)
        one.step(0.01)
        set_gradients(broken, step)
        two.step(0.01)
    with two.as_evaluated():  # as a checkpoint is written
        model, state = ({n: t.detach().clone() for n, t in d.items()} for d in (broken, two.state()))
    with torch.no_grad():
        for name, parameter in broken.items():
            parameter.copy_(model[name])
    fresh = Optimizer(broken.items(), update(optimizer, "bf16"))
    fresh.load(lambda key, piece: state[key][piece.slices], two.updates, two.averaging)
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


def test_a_published_model_starts_with_adamw_at_a_rate_for_tuning() -> None:
    assert (
        choose("auto", "scratch")[0] == "muon" and choose("auto", "folder")[0] == choose("auto", "lora")[0] == "adamw"
    )
    assert choose("muon", "folder") == ("muon", "")
    whole, adapters = default_rate("adamw", 10**9, "folder"), default_rate("adamw", 10**9, "lora")
    assert whole[0] < adapters[0] < default_rate("adamw", 10**9)[0] and "QLoRA" in adapters[1]
