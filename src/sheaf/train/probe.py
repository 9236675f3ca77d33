"""How fast the ranks of a run compute: a real block of its model, its head and its optimiser, for a few seconds.

What is timed is what a step is made of, at the shapes that the run has: a block forward and backward on a micro-batch
of documents as long as the corpus' are, attention alone, embedding with head and loss, an update of the block's
weights. All ranks compute at once, as they will, and the slowest counts. A block too large to be tried here is tried
narrower, and a micro-batch in part: rates hardly depend on either beyond some size. Compiled blocks are not compiled
for this; that takes longer than the probe may: what compiling saves is estimated (`settings.py`).
Cost: a few seconds, at most some 20 (`MOST_SECONDS` is looked at between repetitions, none of which takes much longer
than one), and the memory of one block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sheaf.model.attention import attend, row_starts
from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Block, Embedding, rotary_angles
from sheaf.model.loss import next_token_loss
from sheaf.model.other_config import OtherConfig
from sheaf.parallel.cost import UPDATE_BYTES
from sheaf.parallel.layout import Facts
from sheaf.parallel.links import Machine, measure
from sheaf.parallel.ranks import Ranks
from sheaf.parallel.rates import Rates
from sheaf.train.muon import muon_flops, orthogonalise
from sheaf.train.optimizer import Optimizer, Update
from sheaf.train.settings import COMPILE_SAVES

PART_SECONDS, MOST_SECONDS = 0.5, 20.0  # of one part, of all
LEAST, MOST = 3, 12  # repetitions, after a first one that does not count
BLOCK_WEIGHTS = 24_000_000  # of the widest block that is tried
TOKENS, FEWEST = 4096, 128  # of a pass, at most and at least
PASS_SECONDS = 0.5  # of a block's pass, about, by the rate of one small product
GPU_HIDES = 0.4  # as published runs suggest (`forecast/machines.py`); gloo hides nothing of what is gathered


def machine_here(ranks: Ranks, facts: Facts, dtype: torch.dtype) -> Machine:
    """Rates and links of these ranks, the same on all. Called by every rank."""
    return measure(ranks, rates_here(ranks, facts, dtype))


def rates_here(ranks: Ranks, facts: Facts, dtype: torch.dtype) -> Rates:
    """Of the slowest of these ranks. Called by every rank."""
    trial = _Trial.of(facts, dtype, ranks.device)
    mine: list[float] = []
    for part in (trial.layers, trial.attention, trial.head, trial.muon, trial.update):
        ranks.sum([0.0])  # all at once
        mine.append(part())
    slowest = [min(column) for column in zip(*ranks.rows([mine], len(mine)), strict=True)]
    found = Rates(*slowest, shard_hides=GPU_HIDES if ranks.device.type == "cuda" else 0.0)
    # Attention was in the block too.
    return replace(found, layers=trial.without_attention(found))


@dataclass
class _Trial:
    config: ModelConfig
    shape_bt: tuple[int, int]
    span: float
    dtype: torch.dtype
    device: torch.device
    compiled: bool
    stop: float

    @staticmethod
    def of(facts: Facts, dtype: torch.dtype, device: torch.device) -> _Trial:
        config, length = _small(facts.config), facts.sequence_length
        most = _quick_flops(dtype, device) * PASS_SECONDS / (6 * config.layer_matrices())
        most = max(FEWEST, min(TOKENS, facts.micro_tokens, int(most)))
        length = min(length, max(most, FEWEST))
        span = min(facts.span or length / 2, length / 2)
        stop = time.monotonic() + MOST_SECONDS
        return _Trial(config, (max(1, most // length), length), span, dtype, device, facts.compile, stop)

    @property
    def tokens(self) -> int:
        return self.shape_bt[0] * self.shape_bt[1]

    @property
    def scores(self) -> float:
        """FLOP of attention, forward and backward, in one block."""
        config = self.config
        return 12 * config.num_attention_heads * config.head_dim * self.span * self.tokens

    @property
    def products(self) -> float:
        return 6 * self.config.layer_matrices() * self.tokens

    def layers(self) -> float:
        """Tokens' FLOP a second through a block, attention included."""
        block = self._block()
        hidden = torch.randn(*self.shape_bt, self.config.hidden_size, dtype=self.dtype, device=self.device)
        cos, sin = rotary_angles(self.config, self._positions())
        starts, grad = self._starts(), torch.randn_like(hidden)

        def once() -> None:
            x = hidden.detach().requires_grad_()
            block(x, cos, sin, starts).backward(grad)

        return (self.products + self.scores) / self._seconds(once)

    def attention(self) -> float:
        config, (b, t) = self.config, self.shape_bt
        heads, group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        shape = (b, heads, t, config.head_dim)
        q = torch.randn(b, heads, t, group, config.head_dim, dtype=self.dtype, device=self.device).requires_grad_()
        k, v = (torch.randn(shape, dtype=self.dtype, device=self.device).requires_grad_() for _ in range(2))
        starts, grad = self._starts(), torch.randn_like(q)
        return self.scores / self._seconds(lambda: attend(q, k, v, starts).backward(grad))

    def head(self) -> float:
        """With the embedding, whose gradient is as large as the head's."""
        config = self.config
        table = Embedding(config.vocab_size, config.hidden_size).to(self.device)
        ids = torch.randint(config.vocab_size, self.shape_bt, device=self.device)

        def once() -> None:
            hidden = table(ids, self.dtype)
            next_token_loss(hidden, table.weight, ids).backward()

        return 6 * config.vocab_size * config.hidden_size * self.tokens / self._seconds(once)

    def muon(self) -> float:
        rows, columns = sorted((self.config.hidden_size, self.config.intermediate_size))
        matrix = torch.randn(rows, columns, device=self.device).to(self.dtype)
        return muon_flops(rows, columns) / self._seconds(lambda: orthogonalise(matrix))

    def update(self) -> float:
        """Bytes a second, by the count of the cost model."""
        block = self._block()
        named = {f"layers.0.{name}": parameter for name, parameter in block.named_parameters()}
        for parameter in named.values():
            parameter.grad = torch.zeros_like(parameter)
        kind = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        optimizer = Optimizer(named.items(), Update("adamw", 0.1, (0.9, 0.95), kind))
        grads = [parameter.grad for parameter in named.values() if parameter.grad is not None]

        def once() -> None:
            for grad in grads:  # its norm, clipping, and zeros at the end
                grad.square().sum()
                grad.mul_(1.0)
            optimizer.step(1e-4)
            for grad in grads:
                grad.zero_()

        weights = sum(parameter.numel() for parameter in named.values())
        return UPDATE_BYTES * weights / self._seconds(once)

    def without_attention(self, found: Rates) -> float:
        """The rate of the block's products, from that of the block as a whole and that of attention."""
        whole = (self.products + self.scores) / found.layers
        rest = max(whole - self.scores / found.attention, 0.3 * whole)
        return self.products / (rest * (1 - COMPILE_SAVES[self.device.type] if self.compiled else 1))

    def _block(self) -> Block:
        block = Block(self.config).to(self.device)
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.02)
        return block

    def _positions(self) -> Tensor:
        return torch.arange(self.shape_bt[1], device=self.device).expand(self.shape_bt)

    def _starts(self) -> Tensor:
        """Of documents that are as long as it takes for a mean token to see so many keys."""
        length = max(1, round(2 * self.span - 1))
        return row_starts(self._positions() // length, self.shape_bt, None, self.device)

    def _seconds(self, once: Callable[[], object]) -> float:
        taken: list[float] = []
        begun = time.monotonic()
        while len(taken) <= LEAST or (len(taken) <= MOST and time.monotonic() - begun < PART_SECONDS):
            start = time.perf_counter()
            once()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
            if len(taken) > 1 and time.monotonic() > self.stop:
                break
        return max(statistics.median(taken[1:]), 1e-9)


def _quick_flops(dtype: torch.dtype, device: torch.device) -> float:
    """A first idea, so that a slow machine is not kept busy for a minute."""
    a = torch.ones(256, 512, dtype=dtype, device=device)
    b = torch.ones(512, 512, dtype=dtype, device=device)
    taken: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        taken.append(time.perf_counter() - start)
    return 2 * 256 * 512 * 512 / min(taken[1:])


def _small(config: object) -> ModelConfig:
    """The block that is tried: the model's own, or one like it that is not too wide for a few seconds."""
    if isinstance(config, OtherConfig):
        hidden = config.hidden_size - config.hidden_size % 64 or 64
        config = ModelConfig(
            "llama", config.vocab_size, hidden, 4 * hidden, config.num_hidden_layers, hidden // 64, hidden // 64, 64, 1
        )
    if not isinstance(config, ModelConfig):
        raise AssertionError("a model is of our code or of transformers'")
    while config.layer_matrices() > BLOCK_WEIGHTS and config.num_attention_heads % 2 == 0:
        kv = max(1, config.num_key_value_heads // 2)
        config = replace(
            config, hidden_size=config.hidden_size // 2, intermediate_size=config.intermediate_size // 2,
            num_attention_heads=config.num_attention_heads // 2, num_key_value_heads=kv,
        )  # fmt: skip
    most = max(1, BLOCK_WEIGHTS // config.hidden_size)
    return replace(config, num_hidden_layers=1, vocab_size=min(config.vocab_size, most))
