"""Each way of summing gradients over real ranks, against the dense sum: its error, and what it keeps for later."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from summing_rank import SHAPES, STEPS, WAYS, gradients_of
from torch import Tensor

from sheaf.parallel.coded import BLOCK, Int8, TwoBit
from sheaf.parallel.launch import Ended, forker, run_once

HERE = Path(__file__).parent
LOSSY = [way for way, how in WAYS.items() if how.is_lossy]


@pytest.fixture(scope="module", params=[2, 3])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, Tensor]]]:
    """By rank: "<way>.<step>.<sum or kept>.<parameter>"."""
    ranks: int = request.param
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("OMP_NUM_THREADS", "1")
        with forker("summing_rank", ("sheaf.parallel.data",), ranks) as starts:
            assert run_once(starts, [str(folder)], ranks, folder) == Ended()
    yield [load_file(folder / f"{rank}.safetensors") for rank in range(ranks)]


def dense(name: str, step: int, ranks: int) -> Tensor:
    return torch.stack([gradients_of(rank, step)[name].double() for rank in range(ranks)]).sum(0)


@pytest.mark.parametrize("way", WAYS)
def test_all_ranks_end_with_the_very_same_bits(found: list[dict[str, Tensor]], way: str) -> None:
    for key in (f"{way}.{step}.sum.{name}" for step in range(STEPS) for name in SHAPES):
        assert all(torch.equal(found[0][key], other[key]) for other in found[1:]), key


def test_fp32_is_the_dense_sum_and_bf16_within_its_stated_error(found: list[dict[str, Tensor]]) -> None:
    for step in range(STEPS):
        for name in SHAPES:
            exact = dense(name, step, len(found))
            torch.testing.assert_close(found[0][f"fp32.{step}.sum.{name}"].double(), exact, rtol=1e-5, atol=1e-5)
            sizes = torch.stack([gradients_of(rank, step)[name].double().abs() for rank in range(len(found))]).sum(0)
            off = (found[0][f"bf16.{step}.sum.{name}"].double() - exact).abs()
            assert (off <= 2.0**-8 * (sizes + exact.abs()) * 1.01).all()
            assert off.max() > 0
    assert not any(".kept." in key for key in found[0] if key.startswith(("fp32", "bf16")))


@pytest.mark.parametrize("way", LOSSY)
def test_what_ranks_keep_is_exactly_what_the_sums_so_far_lack(found: list[dict[str, Tensor]], way: str) -> None:
    for name in SHAPES:
        given = taken = torch.zeros(SHAPES[name], dtype=torch.float64)
        for step in range(STEPS):
            given = given + dense(name, step, len(found))
            taken = taken + found[0][f"{way}.{step}.sum.{name}"].double()
            kept = torch.stack([rank[f"{way}.{step}.kept.{name}"].double() for rank in found]).sum(0)
            torch.testing.assert_close(taken + kept, given, rtol=0, atol=2e-4)


@pytest.mark.parametrize("way", LOSSY)
def test_the_mean_of_many_steps_is_nearer_to_the_truth_than_a_step_is(found: list[dict[str, Tensor]], way: str) -> None:
    """Where gradients are steady, without what is kept the mean would be about as far off as a step."""
    given = torch.stack([dense("matrix", step, len(found)) for step in range(STEPS)]).sum(0)
    taken = torch.stack([found[0][f"{way}.{step}.sum.matrix"].double() for step in range(STEPS)]).sum(0)
    first = found[0][f"{way}.0.sum.matrix"].double() - dense("matrix", 0, len(found))
    assert (taken - given).norm() / given.norm() < 0.6 * first.norm() / dense("matrix", 0, len(found)).norm()


def test_powersgd_takes_the_projection_on_the_basis_of_the_step_before(found: list[dict[str, Tensor]]) -> None:
    """One process with all the matrices: P = S·Q made orthonormal, then P·Pᵀ·S, and Q = Sᵀ·P for the next step."""
    basis = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)).double()
    kept = torch.zeros(96, 64, dtype=torch.float64)
    for step in range(STEPS):
        whole = dense("matrix", step, len(found)) + kept
        p = torch.linalg.qr(whole @ basis).Q
        basis = whole.T @ p
        torch.testing.assert_close(found[0][f"powersgd.{step}.sum.matrix"].double(), p @ basis.T, rtol=1e-3, atol=1e-3)
        kept = whole - p @ basis.T
    torch.testing.assert_close(
        found[0]["powersgd.0.sum.vector"].double(), dense("vector", 0, len(found)), rtol=1e-5, atol=1e-5
    )


def test_topk_sums_the_largest_of_each_block_and_nothing_else(found: list[dict[str, Tensor]]) -> None:
    wanted = torch.zeros(SHAPES["wide"])
    for rank in range(len(found)):
        gradient = gradients_of(rank, 0)["wide"]
        blocks = gradient.abs().view(-1, 1024)
        is_large = (blocks >= blocks.topk(51, dim=1).values[:, -1:]).view(SHAPES["wide"])
        wanted += torch.where(is_large, gradient.bfloat16().float(), 0.0)
    assert torch.equal(found[0]["topk.0.sum.wide"], wanted)


@pytest.mark.parametrize("code", [Int8(), TwoBit()])
def test_kernels_give_what_the_code_for_any_device_gives(code: Int8 | TwoBit) -> None:
    values = torch.randn(2, 4 * BLOCK, generator=torch.Generator().manual_seed(0))
    values[0, :BLOCK], values[0, BLOCK : BLOCK + 3], values[1, -1] = 0, torch.tensor([5.0, -7.0, 1e-20]), 1e-39
    sent, plain = code.decode(code.encode(values)), code.decode(code.encode_anywhere(values))
    torch.testing.assert_close(sent, plain, rtol=2.0**-7, atol=0)  # a scale may be rounded to the next bf16
    assert not sent[0, :BLOCK].any() and (values - sent).norm() < 0.45 * values.norm()
    for odd in (math.nan, math.inf):
        values[1, 5] = odd
        assert not code.decode(code.encode(values))[1, :BLOCK].isfinite().any()
