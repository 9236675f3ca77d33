"""The model: single-device code of a decoder, with the parameter names of the published checkpoints.

Letters: b batch, t positions, d hidden size, h key-value heads, g query heads a key-value head, e head dimension.

Pre-norm blocks of attention and SwiGLU (Touvron et al. 2023, LLaMA), rotary positions (Su et al. 2021), grouped-query
attention (Ainslie et al. 2023), RMS norm (Zhang & Sennrich 2019). Parameters are fp32 masters, cast to
`compute_dtype` where they are used, so that gradients arrive in fp32 on the masters; norms, rotations and softmax
sums are fp32; there is no autocast. q, k and v are one matrix product, gate and up another; the stored names stay
apart.

A block takes tensors only and holds no number of its own layer, so that one compiled block serves all (`compile.py`).
The embedding, whose gradient is a scatter, stays outside of it: ATen's is deterministic, a generated one with atomics
is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sheaf.model.attention import attend, attend_masked, row_starts
from sheaf.model.cache import KeyValueCache
from sheaf.model.config import ModelConfig
from sheaf.model.loss import next_token_loss, per_token_loss
from sheaf.model.pointwise import rms_norm, rotated, swiglu

if TYPE_CHECKING:
    from sheaf.model.adapters import Lora

__all__ = ["Decoder", "KeyValueCache"]


class Decoder(nn.Module):
    """Parameters are zeros (norms: ones) until `initialise` or `families.fill` fills them."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.lora: Lora | None = None
        """What was put beside the weights, which are frozen then (`adapters.attach`)."""
        self.begins = self.ends = True
        self.model = Body(config)
        self.lm_head = None if config.tie_word_embeddings else Weights(config.vocab_size, config.hidden_size)

    def forward(
        self,
        inputs: Tensor,
        position_ids_bt: Tensor,
        document_ids_bt: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states (b, t, d) after the final norm, in compute_dtype.

        inputs: token ids (b, t). position_ids_bt: position of each token in its document. document_ids_bt: equal along
        a document, −1 for padding; None: one document a row. cache: keys and values of the positions before these,
        which is extended. Of a model that holds some of the layers only (`parallel/pipeline.py`): inputs are what the
        layers before gave, unless it begins the model, and what it gives goes on to those after, unless it ends it.
        """
        body = self.model
        hidden_btd = body.embed_tokens(inputs, self.compute_dtype) if self.begins else inputs
        rotation = rotary_angles(self.config, position_ids_bt)
        visible = self._visible(position_ids_bt, document_ids_bt, cache)
        for number, block in body.held():
            seen = visible[self.config.window_of(number)]
            if cache is None:
                hidden_btd = block(hidden_btd, *rotation, seen)
            else:
                # Not through __call__: shapes grow with every token, and a compiled block is of one shape.
                keys = _LayerCache(cache, number)
                hidden_btd = block.forward(hidden_btd, *rotation, seen, keys)
        return body.norm(hidden_btd) if self.ends else hidden_btd

    @property
    def head_weight(self) -> nn.Parameter:
        """(vocabulary, d): the head's matrix, which is the embedding's when tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def blocks(self) -> list[nn.Module]:
        """The layers that are here."""
        return [block for _, block in self.model.held()]

    @property
    def embedding_weight(self) -> nn.Parameter:
        return self.model.embed_tokens.weight

    def tied_names(self) -> list[tuple[str, str]]:
        """(embedding, head) if the head is the embedding: one parameter here, two names for others."""
        return [("model.embed_tokens.weight", "lm_head.weight")] if self.lm_head is None else []

    def next_token_loss(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        """fp32 scalar: the sum of the cross-entropy over the labels that are not −100, in nats."""
        return next_token_loss(hidden_btd, self.head_weight, labels_bt)

    def per_token_loss(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        """fp32 (b, t): the same of each label, 0 where it is −100. No gradient."""
        return per_token_loss(hidden_btd, self.head_weight, labels_bt)

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """(b, t, vocabulary) in compute_dtype. For generation and tests; the loss never builds them whole."""
        return functional.linear(hidden_btd, self.head_weight.to(hidden_btd.dtype))

    def _visible(
        self, position_ids_bt: Tensor, document_ids_bt: Tensor | None, cache: KeyValueCache | None
    ) -> dict[int | None, Tensor]:
        """By window (None: none): the first visible key of each row or, with a cache, the mask of its visible keys."""
        windows = {self.config.window_of(layer) for layer in range(self.config.num_hidden_layers)}
        # Of all positions, where this rank computes some of them only (`parallel/context.py`).
        (b, t), device = (position_ids_bt if document_ids_bt is None else document_ids_bt).shape, position_ids_bt.device
        if cache is None:
            return {window: row_starts(document_ids_bt, (b, t), window, device) for window in windows}
        if document_ids_bt is not None:
            raise ValueError("a cache continues one document a row")
        return {window: cache.visible(t, window).expand(b, t, -1) for window in windows}


class Body(nn.Module):
    """layers: None where another rank holds one (`parallel/pipeline.py`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def held(self) -> list[tuple[int, Block]]:
        """The layers that are here, by number."""
        blocks = cast(Iterable[Block | None], self.layers)
        return [(number, block) for number, block in enumerate(blocks) if block is not None]


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_btd: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, keys: _LayerCache | None = None
    ) -> Tensor:
        hidden_btd = hidden_btd + self.self_attn(self.input_layernorm(hidden_btd), cos, sin, visible, keys)
        return hidden_btd + self.mlp(self.post_attention_layernorm(hidden_btd))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.kv_heads = config.num_key_value_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        q, kv, d = config.num_attention_heads * config.head_dim, self.kv_heads * config.head_dim, config.hidden_size
        self.q_proj = Weights(q, d, bias=config.attention_bias)
        self.k_proj = Weights(kv, d, bias=config.attention_bias)
        self.v_proj = Weights(kv, d, bias=config.attention_bias)
        self.o_proj = Weights(d, q, bias=config.output_bias)
        self.q_norm = RmsNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RmsNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.attend, self.linear = attend, joint_linear  # `parallel/` puts others in their place

    def forward(self, x_btd: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, keys: _LayerCache | None) -> Tensor:
        b, t, _ = x_btd.shape
        kv = self.kv_heads * self.head_dim
        q, k, v = self.linear(x_btd, self.q_proj, self.k_proj, self.v_proj).split([self.group * kv, kv, kv], dim=-1)
        q_bthge = q.reshape(b, t, self.kv_heads, self.group, self.head_dim)
        k_bthe = k.reshape(b, t, self.kv_heads, self.head_dim)
        v_bhte = v.reshape(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_bthge, k_bthe = self.q_norm(q_bthge), self.k_norm(k_bthe)
        q_bhtge = rotated(q_bthge, cos, sin, 1 / math.sqrt(self.head_dim))
        k_bhte = rotated(k_bthe[:, :, :, None], cos, sin).squeeze(3)
        if keys is None:
            out_bhtge = self.attend(q_bhtge, k_bhte, v_bhte, visible)
        else:
            out_bhtge = attend_masked(q_bhtge, *keys.extended(k_bhte, v_bhte), visible)
        return self.linear(out_bhtge.transpose(1, 2).reshape(b, t, -1), self.o_proj)


class Mlp(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Weights(config.intermediate_size, config.hidden_size)
        self.up_proj = Weights(config.intermediate_size, config.hidden_size)
        self.down_proj = Weights(config.hidden_size, config.intermediate_size)
        self.linear = joint_linear

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.linear(swiglu(self.linear(x_btd, self.gate_proj, self.up_proj)), self.down_proj)


class RmsNorm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


class Weights(nn.Module):
    """A matrix (out, in) and perhaps a bias, under the names that a checkpoint gives them. lora_A (rank, in) and lora_B
    (out, rank): low-rank factors beside it, whose product counts lora_scale times, the same in
    all of a model (`adapters.py`)."""

    lora_A: Weights | None
    lora_B: Weights | None

    def __init__(self, out_size: int, in_size: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_size, in_size))
        self.bias = nn.Parameter(torch.zeros(out_size)) if bias else None
        self.lora_A = self.lora_B = None
        self.lora_scale = 1.0


class Embedding(Weights):
    """The rows of ids [first_id, first_id + rows); all of them, unless `parallel/tensor.py` has cut it."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__(rows, size)
        self.first_id = 0
        self.is_part = False

    def forward(self, ids_bt: Tensor, dtype: torch.dtype) -> Tensor:
        """(b, t, d); zeros for ids that another rank has."""
        if not self.is_part:
            return functional.embedding(ids_bt, self.weight).to(dtype)
        here_bt = ids_bt - self.first_id
        other_bt = (here_bt < 0) | (here_bt >= self.weight.shape[0])
        found_btd = functional.embedding(here_bt.masked_fill(other_bt, 0), self.weight)
        return found_btd.masked_fill(other_bt[..., None], 0).to(dtype)


def joint_linear(x: Tensor, *parts: Weights) -> Tensor:
    """One matrix product for several projections of the same input; outputs lie side by side in the last dimension."""
    weight = torch.cat([part.weight.to(x.dtype) for part in parts])
    biases = [part.bias.to(x.dtype) for part in parts if part.bias is not None]
    out = functional.linear(x, weight, torch.cat(biases) if biases else None)
    return out if all(part.lora_A is None for part in parts) else out + _low_rank(x, parts)


def _low_rank(x: Tensor, parts: Sequence[Weights]) -> Tensor:
    """scale·B(Ax) of each part side by side, zero where a part has no factors; one product for all the A."""
    down = [part.lora_A.weight.to(x.dtype) for part in parts if part.lora_A is not None]
    scale = next(part.lora_scale for part in parts if part.lora_A is not None)
    ranks = iter((functional.linear(x, torch.cat(down)) * scale).split([len(a) for a in down], dim=-1))
    outs = [
        x.new_zeros((*x.shape[:-1], len(part.weight)))
        if part.lora_B is None
        else functional.linear(next(ranks), part.lora_B.weight.to(x.dtype))
        for part in parts
    ]
    return torch.cat(outs, dim=-1)


def rotary_angles(config: ModelConfig, position_ids_bt: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32 (b, t, e/2), of each position times each frequency."""
    angles = position_ids_bt.float()[..., None] * rotary_frequencies(config, position_ids_bt.device)
    return angles.cos(), angles.sin()


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """theta^(−2i/e), with the linear (Chen et al. 2023) or Llama 3.1 (Dubey et al. 2024) stretching of long waves."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    slow = frequencies / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slow
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequencies + (1 - keep) * slow


class _LayerCache:
    """One layer's part of a cache."""

    def __init__(self, cache: KeyValueCache, layer: int) -> None:
        self._cache, self._layer = cache, layer

    def extended(self, k_bhte: Tensor, v_bhte: Tensor) -> tuple[Tensor, Tensor]:
        return self._cache.extended(self._layer, k_bhte, v_bhte)
