"""A document in a pack neither sees nor feels its neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_shapes import positions, random_model, small_config, tokens

from sheaf.model.attention import ROWS, attend, attend_masked, row_starts
from sheaf.model.decoder import Decoder
from sheaf.model.loss import next_token_loss, per_token_loss

CPU = torch.device("cpu")


def packed(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(position_ids, document_ids) of one row."""
    position = torch.cat([torch.arange(n) for n in lengths])[None]
    document = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    return position, document


def document_loss(model: Decoder, before: int, after: int, seed: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Per-token losses of a fixed document of 90 tokens between neighbours of other lengths, and its gradients."""
    model.zero_grad()
    document, labels = tokens(1, 90, seed=1), tokens(1, 90, seed=2)
    ids = torch.cat([tokens(1, before, seed), document, tokens(1, after, seed + 1)], dim=1)
    targets = torch.full_like(ids, -100)
    targets[:, before : before + 90] = labels
    position, documents = packed([before, 90, after])
    hidden = model(ids, position, documents)
    next_token_loss(hidden, model.head_weight, targets).backward()
    losses = per_token_loss(hidden, model.head_weight, targets)[0, before : before + 90]
    return losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("window", [None, 24])
def test_a_documents_losses_and_gradients_do_not_change_with_its_neighbours(
    dtype: torch.dtype, tolerance: float, window: int | None
) -> None:
    model = random_model(small_config("mistral", sliding_window=window), dtype=dtype)
    alone, gradients = document_loss(model, 0, 0, seed=3)
    for before, after, seed in ((1, 5, 4), (70, 130, 5), (200, 7, 6)):
        losses, others = document_loss(model, before, after, seed)
        assert torch.allclose(losses, alone, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(others, gradients, strict=True):
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_without_document_ids_a_row_is_one_document_and_with_them_it_is_not() -> None:
    model = random_model(small_config())
    ids = tokens(1, 100)
    one = torch.zeros((1, 100), dtype=torch.int64)
    whole = model(ids, positions(1, 100))
    assert torch.equal(whole, model(ids, positions(1, 100), one))
    cut = model(ids, positions(1, 100), packed([50, 50])[1])
    assert torch.equal(whole[:, :50], cut[:, :50])
    assert (whole[:, 50:] - cut[:, 50:]).abs().max() > 0.1


def test_padding_is_finite_and_changes_no_gradient() -> None:
    model = random_model(small_config())
    ids, labels = tokens(1, 140), tokens(1, 140, seed=9)
    position, documents = packed([90, 50])
    documents[:, 90:], labels[:, 90:] = -1, -100
    gradients: list[list[torch.Tensor]] = []
    for filler in (0, 17):
        model.zero_grad()
        ids[:, 90:] = filler
        hidden = model(ids, position, documents)
        assert hidden.isfinite().all()
        next_token_loss(hidden, model.head_weight, labels).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert gradients[0][0][17].isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 2 * ROWS), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 300),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
)
def test_the_tiled_kernel_equals_masked_attention_in_value_and_gradients(
    lengths: list[int], window: int | None, kv_heads: int, group: int
) -> None:
    document = packed(lengths)[1]
    t = document.shape[1]
    generator = torch.Generator().manual_seed(t)
    q = torch.randn(1, kv_heads, t, group, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(1, kv_heads, t, 8, generator=generator, requires_grad=True) for _ in range(2))
    rows, keys = torch.arange(t)[:, None], torch.arange(t)
    visible = (document[:, :, None] == document[:, None, :]) & (keys <= rows)
    if window is not None:
        visible &= rows - keys < window
    ours = attend(q, k, v, row_starts(document, (1, t), window, CPU))
    reference = attend_masked(q, k, v, visible)
    grad = torch.randn(ours.shape, generator=generator)
    assert (ours - reference).abs().max() < 1e-5
    for a, b in zip(*(torch.autograd.grad(x, (q, k, v), grad) for x in (ours, reference)), strict=True):
        assert (a - b).abs().max() < 1e-4


def test_long_rows_are_computed_some_heads_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 4, 300, 2, 8)
    k, v = torch.randn(1, 4, 300, 8), torch.randn(1, 4, 300, 8)
    starts = row_starts(None, (1, 300), None, CPU)
    at_once = attend(q, k, v, starts)
    monkeypatch.setattr("sheaf.model.attention.TILE_ELEMENTS", 1)
    assert torch.allclose(attend(q, k, v, starts), at_once, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_attention_is_equal_bit_for_bit_on_any_number_of_threads(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, 2, 300, 2, 16, generator=generator, requires_grad=True)
    k, v = (torch.randn(batch, 2, 300, 16, generator=generator, requires_grad=True) for _ in range(2))
    starts = row_starts(torch.sort(tokens(batch, 300) % 4).values, (batch, 300), None, CPU)
    before = torch.get_num_threads()
    results: list[list[torch.Tensor]] = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = attend(q, k, v, starts)
            results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_operators_are_sound_for_compilation() -> None:
    q = torch.randn(1, 2, 20, 2, 8, requires_grad=True)
    k, v = (torch.randn(1, 2, 20, 8, requires_grad=True) for _ in range(2))
    starts = row_starts(None, (1, 20), None, CPU)
    torch.library.opcheck(torch.ops.sheaf.attend.default, (q, k, v, starts))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_losses_as_on_the_cpu() -> None:
    model = random_model(small_config())
    ids, (position, documents) = tokens(1, 100), packed([60, 40])
    here = model(ids, position, documents)
    there = model.cuda()(ids.cuda(), position.cuda(), documents.cuda()).cpu()
    assert torch.allclose(here, there, atol=1e-3)
