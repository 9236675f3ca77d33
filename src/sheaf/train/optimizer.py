"""The update of the weights: AdamW, schedule-free AdamW, or Muon for the matrices in the layers and AdamW beside it.

Weight decay acts on matrices only, and not on the embedding: a token's row is touched only when the token occurs, but
would shrink at every step. Low-rank factors are AdamW's: what Muon levels are a weight's directions, and a factor's are
not those of the product. The state is a flat mapping "<kind>.<parameter name>" → fp32 tensor plus two numbers, which is
what a checkpoint stores; it knows nothing of ranks or layouts, and all but Muon's is elementwise.
Cost: AdamW and schedule-free 8 bytes a weight, Muon 4 bytes for each weight of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from sheaf.model.pieces import Piece
from sheaf.train.muon import Together, each_alone, muon_step
from sheaf.train.patterns import factor_of
from sheaf.train.schedule_free import EPSILON, averaged, schedule_free_step

# Rows are tokens, or rank 16: Muon's geometry does not hold (Jordan et al. 2024). By the names of many families.
NOT_HIDDEN = ("embed_tokens", "lm_head", "lora_", "wte", "wpe", "embed_in", "embed_out", "embedding")
EMBEDDINGS = ("embed_tokens", "wte", "wpe", "embed_in", "embedding")
Kind = Literal["muon", "adamw", "schedule-free"]
Start = Literal["scratch", "folder", "lora"]


@dataclass(frozen=True)
class Update:
    """What an optimiser step needs besides gradients and rate. rates: `train.rates`, a factor by glob of names."""

    optimizer: Kind
    weight_decay: float
    betas: tuple[float, float]
    precision: Literal["bf16", "fp32"]
    rates: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class _Group:
    """Parameters that are updated alike. factor: on the rate."""

    names: tuple[str, ...]
    weight_decay: float
    factor: float


class Optimizer:
    """One of the three over named parameters, which are updated at `step` from their gradients."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        update: Update,
        pieces: Mapping[str, Piece] | None = None,
        together: Callable[[Mapping[str, Piece]], Together] | None = None,
    ) -> None:
        """pieces: which parts of the parameters these are (None: all). together: from the pieces of the hidden
        matrices, the function that makes wholes of them."""
        self.update = update
        self.updates = 0
        self.averaging = 0.0
        """Σγ² of the updates so far: what the mean of schedule-free weighs against a new iterate."""
        self._parameters = parameters = dict(named)
        by_matrix = {name: update.optimizer == "muon" and is_hidden_matrix(name, p) for name, p in parameters.items()}
        self._muon = muon = {name: p for name, p in parameters.items() if by_matrix[name]}
        self._rest = {name: p for name, p in parameters.items() if not by_matrix[name]}
        self._factor = {name: factor_of(name, update.rates) for name in parameters}
        self._plain = _grouped(self._rest, update.weight_decay, self._factor)
        self._pieces = {n: pieces[n] if pieces else Piece.whole(tuple(p.shape)) for n, p in parameters.items()}
        held = {name: self._pieces[name] for name in muon}
        self._together = each_alone if together is None or not held else together(held)
        self._momenta = {name: torch.zeros_like(parameter) for name, parameter in muon.items()}
        self._free = update.optimizer == "schedule-free"
        self._z = {name: p.detach().clone() for name, p in self._rest.items()} if self._free else {}
        self._means = {} if self._free else {name: torch.zeros_like(p) for name, p in self._rest.items()}
        self._squares = {name: torch.zeros_like(p) for name, p in self._rest.items()}
        self._counts = {} if self._free else {n: torch.zeros((), device=p.device) for n, p in self._rest.items()}
        """AdamW's number of updates, as torch's kernel wants it: a tensor for each parameter."""
        self._aside: dict[str, Tensor] = {}

    def step(self, rate: float) -> None:
        """One update of every parameter from its `.grad`."""
        if self._muon:
            muon_step(
                list(self._muon.values()),
                [_gradient(parameter) for parameter in self._muon.values()],
                list(self._momenta.values()),
                rates=[rate * self._factor[name] for name in self._muon],
                weight_decay=self.update.weight_decay,
                dtype=torch.bfloat16 if self.update.precision == "bf16" else torch.float32,
                together=self._together,
                shapes=[self._pieces[name].shape for name in self._muon],
            )
        if self._free:
            self._schedule_free(rate)
        else:
            self._adamw(rate)
        self.updates += 1

    @contextmanager
    def as_evaluated(self) -> Generator[None]:
        """Inside, the parameters hold the weights to evaluate, to save and to export; after it what is trained, bit for
        bit. Only schedule-free makes a difference; it costs a copy of the weights meanwhile."""
        if not self._free:
            yield
            return
        with torch.no_grad():
            self._aside = {name: parameter.detach().clone() for name, parameter in self._rest.items()}
            for name, parameter in self._rest.items():
                parameter.copy_(averaged(self._aside[name], self._z[name], self.update.betas[0]))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._rest.items():
                    parameter.copy_(self._aside[name])
            self._aside = {}

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves (not copies), by "<kind>.<parameter name>"."""
        tensors = {f"momentum.{name}": momentum for name, momentum in self._momenta.items()}
        for name, parameter in self._rest.items():
            if self._free:
                tensors[f"y.{name}"], tensors[f"z.{name}"] = self._aside.get(name, parameter.detach()), self._z[name]
            else:
                tensors[f"exp_avg.{name}"] = self._means[name]
            tensors[f"exp_avg_sq.{name}"] = self._squares[name]
        return tensors

    @torch.no_grad()
    def load(self, read: Callable[[str, Piece], Tensor], updates: int, averaging: float = 0.0) -> None:
        """Take over a saved state. read: of "<kind>.<parameter name>", a piece of it."""
        for key, tensor in self.state().items():
            tensor.copy_(read(key, self._pieces[key.partition(".")[2]]))
        self.updates, self.averaging = updates, averaging
        for count in self._counts.values():
            count.fill_(float(updates))

    @torch.no_grad()
    def _adamw(self, rate: float) -> None:
        """torch's fused kernel through its functional form: the class imports torch's compiler, which takes seconds."""
        for group in self._plain:
            adamw(
                [self._parameters[name] for name in group.names],
                [_gradient(self._parameters[name]) for name in group.names],
                [self._means[name] for name in group.names],
                [self._squares[name] for name in group.names],
                [],
                [self._counts[name] for name in group.names],
                fused=True,
                amsgrad=False,
                beta1=self.update.betas[0],
                beta2=self.update.betas[1],
                lr=rate * group.factor,
                weight_decay=group.weight_decay,
                eps=EPSILON,
                maximize=False,
            )

    def _schedule_free(self, rate: float) -> None:
        self.averaging += rate**2
        for group in self._plain:
            schedule_free_step(
                [self._parameters[name] for name in group.names],
                [_gradient(self._parameters[name]) for name in group.names],
                [self._z[name] for name in group.names],
                [self._squares[name] for name in group.names],
                rate=rate * group.factor,
                weight_decay=group.weight_decay,
                betas=self.update.betas,
                updates=self.updates,
                share=rate**2 / self.averaging if self.averaging > 0 else 1.0,
            )


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and not any(part in name for part in NOT_HIDDEN)


def state_tensors(name: str, parameter: Tensor, optimizer: Kind) -> int:
    """How many tensors of a parameter's size its state is."""
    return 1 if optimizer == "muon" and is_hidden_matrix(name, parameter) else 2


def is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and not any(part in name for part in EMBEDDINGS)


def choose(asked: Literal["auto"] | Kind, start: Start) -> tuple[Kind, str]:
    """The optimiser of a run, and why, if the recipe leaves it open."""
    if asked != "auto":
        return asked, ""
    if start == "scratch":
        return "muon", ""
    return "adamw", "the model was trained with it, and Muon gains nothing then (Liu et al. 2025, section 3.5)"


def default_rate(optimizer: Kind, hidden_parameters: int, start: Start = "scratch") -> tuple[float, str]:
    """The highest learning rate when the recipe names none, and where it comes from.

    hidden_parameters: weights outside embedding and head. start: from scratch, or a published model, trained whole or
    by adapters.
    """
    if start != "scratch":
        return FINE_RATES[start]
    kaplan = 0.003239 - 0.0001395 * math.log(max(hidden_parameters, 1))
    source = "0.003239 - 0.0001395·ln(parameters), Kaplan et al. 2020, equation D.1"
    factor = SCRATCH_FACTORS[optimizer]
    if factor == 1:
        return float(f"{kaplan:.3g}"), source
    return float(f"{factor * kaplan:.3g}"), f"{factor:g} times AdamW's {source}"


# Muon: 0.9 M weights, bytes of Python source, 80 steps of 2,048 tokens, held-out nats at 1, 2.3 and 4.5 times
# Kaplan's rate: 2.735, 2.468, 2.393 (AdamW at 1 and 3 times: 2.883, 2.837). Jordan's 0.02 is 4 times.
# Schedule-free: between 1 and 10 times, say its authors (github.com/facebookresearch/schedule_free, README).
SCRATCH_FACTORS: dict[Kind, float] = {"muon": 3.0, "adamw": 1.0, "schedule-free": 2.0}
# Ten times for adapters is also what Schulman et al. 2025 (LoRA Without Regret) find over many models.
FINE_RATES: dict[Start, tuple[float, str]] = {
    "folder": (2e-5, "usual for tuning a whole published model (Taori et al. 2023, Alpaca)"),
    "lora": (2e-4, "usual for adapters (Dettmers et al. 2023, QLoRA, table 9)"),
}


def published_batch(flops: float) -> float:
    """Tokens of a global batch that suit a run from scratch of so many FLOPs (Bi et al. 2024, DeepSeek LLM, arXiv
    2401.02954, equation 1, for 1e17 to 2e19)."""
    return 0.2920 * flops**0.3271


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise AssertionError("the trainer gives every parameter a gradient buffer")
    return parameter.grad


def _grouped(named: Mapping[str, Tensor], weight_decay: float, factor: Mapping[str, float]) -> list[_Group]:
    """Decayed ones first; inside, in the order in which factors occur."""
    keys = {n: (weight_decay if is_decayed(n, p) else 0.0, factor.get(n, 1.0)) for n, p in named.items()}
    order = sorted(dict.fromkeys(keys.values()), key=lambda key: key[0], reverse=True)
    return [_Group(tuple(name for name in named if keys[name] == key), *key) for key in order]
