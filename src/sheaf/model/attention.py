"""Causal attention that never leaves a document, by tiles of queries over the keys that they can see.

Letters: b batch, t positions, h key-value heads, g query heads a key-value head, d head dimension, r rows of a tile,
l keys.

What a position may see is one number: `starts_bt`, the first visible key of each row; it sees [start, row].
Documents, a sliding window and plain causal attention are three ways to compute it, so one kernel serves all, and its
shape does not depend on how many documents there are: nothing recompiles.

On CPU a tile of 128 rows takes the keys from the first row's start (rounded down, so that few matrix shapes occur) to
its own end, as two batched products and a softmax of ATen; backward recomputes the probabilities. Batch rows go to
threads (`workers.py`). Cost: Σ over documents of len²/2 plus a tile's edge, where a kernel with a mask costs T².
Memory: one tile's scores a thread. Measured on two Zen 4 cores, 16 × 512, 8 heads of 64, no documents, forward +
backward: 110 to 130 ms in bf16, 210 ms in fp32; ATen's flash kernel 371 and 297: it computes whole squares of 512
keys, and has no fast bf16 product without AMX. Scores are rounded to the compute dtype once, their softmax
accumulates in fp32.

On CUDA, `scaled_dot_product_attention` with the mask that the starts say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sheaf.model.operator import operator
from sheaf.model.workers import for_each

ROWS = 128
# Scores that a thread holds at once, in elements. Tiles of long rows are computed some heads at a time.
TILE_ELEMENTS = 1 << 21


def row_starts(
    document_ids_bt: Tensor | None, shape: tuple[int, int], window: int | None, device: torch.device
) -> Tensor:
    """First visible position of every row, int64 (b, t): the start of its document's run, or of the sliding window.

    document_ids_bt: any integers, equal along a document; padding (−1) at the end is a run of its own, finite and
    unseen.
    """
    rows_bt = torch.arange(shape[1], device=device).expand(shape)
    starts_bt = torch.zeros(shape, dtype=torch.int64, device=device)
    if document_ids_bt is not None:
        begins_bt = functional.pad(document_ids_bt[:, 1:] != document_ids_bt[:, :-1], (1, 0))
        starts_bt = torch.cummax(rows_bt * begins_bt, dim=1).values
    if window is not None:
        starts_bt = torch.maximum(starts_bt, rows_bt - (window - 1))
    return starts_bt


def attend(q_bhtgd: Tensor, k_bhtd: Tensor, v_bhtd: Tensor, starts_bt: Tensor) -> Tensor:
    """Attention of every row over the keys from its start to itself. Returns (b, h, t, g, d).

    q is already divided by √d: the caller does it where it rotates q, in one pass.
    """
    if q_bhtgd.device.type == "cpu":
        return _attend_cpu(q_bhtgd.contiguous(), k_bhtd.contiguous(), v_bhtd.contiguous(), starts_bt)
    keys = torch.arange(k_bhtd.shape[2], device=starts_bt.device)
    rows = torch.arange(q_bhtgd.shape[2], device=starts_bt.device)
    visible_btl = (keys >= starts_bt[..., None]) & (keys <= rows[:, None])
    return attend_masked(q_bhtgd, k_bhtd, v_bhtd, visible_btl)


def attend_masked(q_bhtgd: Tensor, k_bhld: Tensor, v_bhld: Tensor, visible_btl: Tensor) -> Tensor:
    """The same with any mask (True = seen): for CUDA, and for decoding, where keys come from a cache."""
    b, h, t, g, d = q_bhtgd.shape
    q = q_bhtgd.transpose(2, 3).reshape(b, h * g, t, d)
    out = functional.scaled_dot_product_attention(
        q, k_bhld, v_bhld, attn_mask=visible_btl[:, None], scale=1.0, enable_gqa=g > 1
    )
    return out.view(b, h, g, t, d).transpose(2, 3)


@operator("sheaf::attend")
def _attend_cpu(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    out = torch.empty_like(q)

    def attend_piece(piece: _Piece) -> None:
        b, heads, tiles = piece
        for rows, keys, hidden in tiles:
            p = _probabilities(q[b, heads, rows].flatten(1, 2), k[b, heads, keys], hidden)
            out[b, heads, rows] = torch.bmm(p, v[b, heads, keys]).view_as(out[b, heads, rows])

    for_each(attend_piece, _pieces(starts, k.shape[1], q.shape[3]))
    return out


@operator("sheaf::attend_backward")
def _attend_cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = softmax(q·kᵀ): dv = Pᵀ·g, dP = g·vᵀ, dS = P∘(dP − rowsum(P∘dP)), dq = dS·k, dk = dSᵀ·q."""
    grad = grad.contiguous()
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)

    def differentiate_piece(piece: _Piece) -> None:
        b, heads, tiles = piece
        for rows, keys, hidden in tiles:
            q_tile, g_tile = q[b, heads, rows].flatten(1, 2), grad[b, heads, rows].flatten(1, 2)
            k_tile, v_tile = k[b, heads, keys], v[b, heads, keys]
            p = _probabilities(q_tile, k_tile, hidden)
            dp = torch.bmm(g_tile, v_tile.mT)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            dq[b, heads, rows] = torch.bmm(ds, k_tile).view_as(dq[b, heads, rows])
            dk[b, heads, keys] += torch.bmm(ds.mT, q_tile)
            dv[b, heads, keys] += torch.bmm(p.mT, g_tile)

    for_each(differentiate_piece, _pieces(starts, k.shape[1], q.shape[3]))
    return dq, dk, dv


@_attend_cpu.register_fake
def _attend_shape(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    return torch.empty_like(q)


@_attend_cpu_backward.register_fake
def _attend_backward_shape(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_attend_cpu_backward(grad, *ctx.saved_tensors), None


_attend_cpu.register_autograd(_backward, setup_context=_save)
_attend_cpu_backward.register_no_second_derivative()


_Tile = tuple[slice, slice, Tensor]
_Piece = tuple[int, slice, list[_Tile]]


def _pieces(starts: Tensor, heads: int, group: int) -> list[_Piece]:
    """What threads share out: a batch row with some of its heads, all where rows alone keep the threads busy.

    Pieces write nothing in common, so the sums of dk and dv have one order whatever the threads do.
    """
    splits = -(-torch.get_num_threads() // len(starts))
    pieces: list[_Piece] = []
    for b, tiles in enumerate(_tiles(starts)):
        elements = max((rows.stop - rows.start) * group * (keys.stop - keys.start) for rows, keys, _ in tiles)
        at_once = max(1, min(-(-heads // splits), TILE_ELEMENTS // elements))
        pieces += [(b, slice(h, min(h + at_once, heads)), tiles) for h in range(0, heads, at_once)]
    return pieces


def _tiles(starts: Tensor) -> Iterator[list[_Tile]]:
    """For each batch row its (rows, keys, hidden_rgl): which of the last l keys each of a tile's rows may not see.

    Where no document or window begins inside the tile only its own keys need a mask, so l is often one tile of many.
    """
    length = starts.shape[1]
    positions = torch.arange(length)
    triangle = positions[:ROWS, None, None] < positions[:ROWS]
    ends = [*range(ROWS - 1, length - 1, ROWS), length - 1]
    for starts_t, firsts, lasts in zip(starts, starts[:, ::ROWS].tolist(), starts[:, ends].tolist(), strict=True):
        tiles: list[_Tile] = []
        for end, first, last in zip(ends, firsts, lasts, strict=True):
            rows = slice(end // ROWS * ROWS, end + 1)
            keys = slice(first // ROWS * ROWS, end + 1)
            size = rows.stop - rows.start
            hidden = triangle[:size, :, :size]
            if last > keys.start:
                row, key = positions[rows, None, None], positions[keys]
                hidden = (key > row) | (key < starts_t[rows, None, None])
            tiles.append((rows, keys, hidden))
        yield tiles


def _probabilities(q_hrd: Tensor, k_hld: Tensor, hidden_rgl: Tensor) -> Tensor:
    scores = torch.bmm(q_hrd, k_hld.mT)
    masked = scores[:, :, -hidden_rgl.shape[2] :].unflatten(1, (hidden_rgl.shape[0], -1))
    masked.masked_fill_(hidden_rgl, float("-inf"))
    return torch.softmax(scores, -1)
