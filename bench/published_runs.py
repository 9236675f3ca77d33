"""Throughput that others have published, with all that it depends on: what `plan_published.py` forecasts again.

GPT and MPT blocks have an MLP of two matrices, four times as wide as the model; here they are blocks with as many
weights in three. fp8: linear layers of the blocks in fp8 (torchao), at the peak of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sheaf.model.config import ModelConfig
from sheaf.recipe import Layout

TITAN = "torchtitan benchmarks/llama3_h100_202412_torchtitan.md"
FOUNDRY = "llm-foundry scripts/train/benchmarking/README.md"
MEGATRON = "Megatron-LM images/model_table.png"


@dataclass(frozen=True)
class Published:
    """name: of model and way. micro: samples of a forward pass. again: of the forward passes that is computed again."""

    source: str
    name: str
    machine: str
    config: ModelConfig
    layout: Layout
    length: int
    batch: int
    micro: int
    again: float
    tokens_per_second: float  # of a GPU
    fp8: bool = False
    overlapped: str = ""  # what its flags hide that Sheaf does not: "tensor", or "tensor, data"


def gpt(hidden: int, layers: int, heads: int, vocabulary: int, length: int, *, tied: bool) -> ModelConfig:
    return ModelConfig(
        model_type="llama", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=round(8 * hidden / 3),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads,
        max_position_embeddings=length, tie_word_embeddings=tied,
    )  # fmt: skip


def llama(hidden: int, wide: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        model_type="llama", vocab_size=128_256, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, max_position_embeddings=131_072,
    )  # fmt: skip


MPT = {"1b": (2048, 24, 16), "3b": (2560, 32, 20), "7b": (4096, 32, 32), "13b": (5120, 40, 40), "30b": (7168, 48, 64),
       "70b": (8192, 80, 64)}  # fmt: skip
LLAMA = {"8B": (4096, 14336, 32, 32), "70B": (8192, 28672, 80, 64), "405B": (16384, 53248, 126, 128)}


def _mpt(
    machine: str, size: str, length: int, gpus: int, batch: int, micro: int, full: bool, rate: float,
) -> Published:  # fmt: skip
    config = gpt(*MPT[size], 50_368, length, tied=True)
    again = 1.0 if full else 0.0
    layout = Layout(shard=gpus)
    return Published(FOUNDRY, f"MPT {size}", machine, config, layout, length, batch, micro, again, rate)


def _llama(
    size: str, layout: Layout, batch: int, micro: int, again: float, rate: float, fp8: bool,
    length: int = 8192, overlapped: str = "",
) -> Published:  # fmt: skip
    config = llama(*LLAMA[size])
    return Published(TITAN, f"Llama {size}", "h100", config, layout, length, batch, micro, again, rate, fp8, overlapped)


def _megatron(
    heads: int, hidden: int, layers: int, tensor: int, pipeline: int, batch: int, teraflops: float,
    replicas: int = 48,
) -> Published:  # fmt: skip
    config = gpt(hidden, layers, heads, 131_072, 4096, tied=True)
    schedule = "interleaved" if pipeline > 1 else "1f1b"
    layout = Layout(data=replicas, tensor=tensor, pipeline=pipeline, schedule=schedule)
    # Tokens a second from TFLOP/s, by the count of Narayanan et al. 2021 (arXiv 2104.04473), equation 3, without
    # the recomputation: 72·l·h²·(1 + s/6h + V/12lh) a token.
    flops = 72 * layers * hidden**2 * (1 + 4096 / (6 * hidden) + 131_072 / (12 * layers * hidden))
    name = f"GPT {config.parameters() / 1e9:.3g}B"
    rate = teraflops * 1e12 / flops
    micro = 1 if pipeline > 1 else 2  # not published
    return Published(MEGATRON, name, "h100", config, layout, 4096, batch, micro, 0.0, rate, overlapped="tensor, data")


SELECTIVE, FULL = 0.6, 1.0
PUBLISHED: tuple[Published, ...] = (
    _llama("8B", Layout(shard=8), 16, 2, SELECTIVE, 6667, False),
    _llama("8B", Layout(shard=128), 256, 2, SELECTIVE, 6514, False),
    _llama("8B", Layout(shard=8), 16, 2, SELECTIVE, 8532, True),
    _llama("8B", Layout(shard=128), 256, 2, SELECTIVE, 8380, True),
    _llama("70B", Layout(shard=32, tensor=8), 512, 16, FULL, 829, True),
    _llama("405B", Layout(shard=8, tensor=8, pipeline=8), 256, 4, FULL, 100, True, overlapped="tensor"),
    _llama(
        "405B",
        Layout(shard=8, tensor=8, pipeline=8, schedule="interleaved"),
        256,
        4,
        FULL,
        128,
        True,
        overlapped="tensor",
    ),
    _mpt("a100", "7b", 2048, 8, 96, 6, False, 4641),
    _mpt("a100", "7b", 65536, 8, 16, 1, True, 1013),
    _mpt("a100", "13b", 2048, 8, 48, 2, False, 2262),
    _mpt("a100", "30b", 2048, 8, 504, 3, True, 916),
    _mpt("a100", "70b", 2048, 64, 2048, 8, True, 410),
    _mpt("h100", "7b", 2048, 8, 48, 6, False, 10643),
    _mpt("h100", "7b", 65536, 8, 16, 1, True, 1956),
    _mpt("h100", "13b", 2048, 8, 16, 2, False, 4792),
    _mpt("h100", "30b", 2048, 8, 504, 3, True, 2002),
    _mpt("h100", "70b", 2048, 64, 2048, 8, True, 1039),
    _mpt("h100", "70b", 2048, 512, 4096, 8, True, 1007),
    _megatron(16, 2048, 24, 1, 1, 192, 408.8),
    _megatron(32, 4096, 30, 2, 1, 192, 465.9),
    _megatron(48, 6144, 32, 4, 1, 192, 489.1),
    _megatron(56, 7168, 48, 8, 1, 192, 459.6),
    _megatron(64, 8192, 84, 8, 2, 384, 419.7),
    _megatron(80, 10240, 92, 8, 4, 768, 420.5),
    _megatron(96, 12288, 96, 8, 6, 1152, 432.8),
    _megatron(128, 16384, 96, 8, 8, 1536, 474.4),
    _megatron(144, 18432, 112, 8, 16, 3072, 459.9),
    # Strong scaling, of which the README says 47% and 42% of 989 TFLOP/s, and no layout: as that model has above.
    _megatron(96, 12288, 96, 8, 6, 1152, 0.47 * 989, replicas=2),
    _megatron(96, 12288, 96, 8, 6, 1152, 0.42 * 989, replicas=96),
)
