"""Tensor parallel: each rank computes with its heads and its columns of every layer, and its tokens of the vocabulary.

Following Megatron-LM (Shoeybi et al. 2019; sequence parallel: Korthikanti et al. 2022). q, k, v, gate and up are cut by
rows (what they give: heads, columns), o and down by columns (what they take), so that one product needs no word from
another rank and the next one gives partial sums. Between them, where a single device would hold the residual stream,
each rank holds a stretch of the positions: it is gathered before attention and MLP, and the partial sums are scattered
after. Norms and residuals are thus computed once for each position, not once on every rank. The embedding and the head
are cut by tokens: a rank looks up the ids that it has and gives zeros for others, and the loss is put together from
maxima and sums (`model/loss.py`).

What one process computes is computed here up to the order of the sums. Cost, a block: the residual stream once more
through every rank in four collectives forward, four backward. Weights, gradients, optimiser state and the activations
of norms and residuals: 1/N each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Block, Decoder
from sheaf.model.pieces import Piece, even_range
from sheaf.parallel.collectives import gather, scatter_sum, use
from sheaf.parallel.mesh import Group

POSITIONS = 1  # dimension of (b, t, d) that is divided between blocks


def split_tensors(model: Decoder, pieces: dict[str, Piece], group: Group) -> None:
    """Leave this rank its part of every layer. `pieces` says before and afterwards what each parameter holds."""
    name = use(group)
    cut = _Cutter(dict(model.named_parameters()), pieces)
    tokens = even_range(model.config.vocab_size, group.size, group.rank)
    cut.rows("model.embed_tokens", tokens)
    cut.rows("lm_head", tokens)

    def scatter(_module: nn.Module, _args: tuple[Any, ...], partial: Tensor) -> Tensor:
        return scatter_sum(partial, POSITIONS, name)

    if model.begins:
        embedding = model.model.embed_tokens
        embedding.first_id, embedding.is_part = tokens[0], True
        embedding.register_forward_hook(scatter)
    for number, block in model.model.held():
        _split_block(block, model.config, cut, f"model.layers.{number}", group)
        for module in (block.self_attn, block.mlp):
            module.register_forward_pre_hook(lambda _module, args: (gather(args[0], POSITIONS, name), *args[1:]))
            module.register_forward_hook(scatter)


def _split_block(block: Block, config: ModelConfig, cut: _Cutter, prefix: str, group: Group) -> None:
    first, last = even_range(config.num_key_value_heads, group.size, group.rank)
    block.self_attn.kv_heads = last - first
    kv = (first * config.head_dim, last * config.head_dim)
    queries = (kv[0] * block.self_attn.group, kv[1] * block.self_attn.group)
    for part, heads in {"q_proj": queries, "k_proj": kv, "v_proj": kv}.items():
        cut.rows(f"{prefix}.self_attn.{part}", heads)
    cut.columns(f"{prefix}.self_attn.o_proj", queries)
    inner = even_range(config.intermediate_size, group.size, group.rank)
    cut.rows(f"{prefix}.mlp.gate_proj", inner)
    cut.rows(f"{prefix}.mlp.up_proj", inner)
    cut.columns(f"{prefix}.mlp.down_proj", inner)


@dataclass(frozen=True)
class _Cutter:
    """Takes a range of the rows (outputs) or columns (inputs) of a projection, and notes it."""

    parameters: dict[str, nn.Parameter]
    pieces: dict[str, Piece]

    def rows(self, module: str, span: tuple[int, int]) -> None:
        for kind in ("weight", "bias"):
            if f"{module}.{kind}" in self.parameters:
                self._cut(f"{module}.{kind}", 0, span)

    def columns(self, module: str, span: tuple[int, int]) -> None:
        self._cut(f"{module}.weight", 1, span)

    def _cut(self, name: str, dimension: int, span: tuple[int, int]) -> None:
        parameter = self.parameters[name]
        parameter.data = parameter.data.narrow(dimension, span[0], span[1] - span[0]).clone()
        self.pieces[name] = self.pieces[name].cut(dimension, *span)
