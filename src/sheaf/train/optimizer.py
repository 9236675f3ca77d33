"""The update of the weights: AdamW for all, or Muon for the matrices inside the layers and AdamW for the rest.

Weight decay acts on matrices only, and not on the embedding: a token's row is touched only when the token occurs, but
would shrink at every step. The state is a flat mapping "<kind>.<parameter name>" → fp32 tensor plus the number of
updates made, which is what a checkpoint stores; it knows nothing of ranks or layouts.
Cost: AdamW 8 bytes a weight, Muon 4 bytes for each weight of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sheaf.model.pieces import Piece
from sheaf.train.muon import Together, each_alone, muon_step

NOT_HIDDEN = ("embed_tokens", "lm_head")  # rows are tokens: Muon's geometry does not hold (Jordan et al. 2024)


@dataclass(frozen=True)
class Update:
    """What an optimiser step needs besides gradients and rate."""

    optimizer: Literal["muon", "adamw"]
    weight_decay: float
    betas: tuple[float, float]
    precision: Literal["bf16", "fp32"]


class Optimizer:
    """AdamW, or Muon and AdamW side by side, over a model's named parameters. `step` expects gradients on all."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        update: Update,
        pieces: Mapping[str, Piece] | None = None,
        together: Callable[[Mapping[str, Piece]], Together] | None = None,
    ) -> None:
        """pieces: which parts of the parameters these are (None: all). together: from the pieces of the hidden
        matrices, the function that makes wholes of them."""
        parameters = dict(named)
        self.update = update
        self.updates = 0
        muon = {n: p for n, p in parameters.items() if update.optimizer == "muon" and is_hidden_matrix(n, p)}
        self._muon = muon
        self._pieces = pieces
        held = {name: pieces[name] if pieces else Piece.whole(tuple(p.shape)) for name, p in muon.items()}
        self._shapes = [piece.shape for piece in held.values()]
        self._together = each_alone if together is None or not held else together(held)
        self._momenta = {name: torch.zeros_like(parameter) for name, parameter in muon.items()}
        self._rest = {name: parameter for name, parameter in parameters.items() if name not in muon}
        self._adamw = _adamw(self._rest, update)

    def step(self, rate: float) -> None:
        """One update of every parameter from its `.grad`."""
        if self._muon:
            muon_step(
                list(self._muon.values()),
                [_gradient(parameter) for parameter in self._muon.values()],
                list(self._momenta.values()),
                rate=rate,
                weight_decay=self.update.weight_decay,
                dtype=torch.bfloat16 if self.update.precision == "bf16" else torch.float32,
                together=self._together,
                shapes=self._shapes,
            )
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.updates += 1

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves (not copies), by "<kind>.<parameter name>"."""
        tensors = {f"momentum.{name}": momentum for name, momentum in self._momenta.items()}
        for name, parameter in self._rest.items():
            for kind in ("exp_avg", "exp_avg_sq"):
                tensors[f"{kind}.{name}"] = self._adamw.state[parameter][kind]
        return tensors

    @torch.no_grad()
    def load(self, read: Callable[[str, Piece], Tensor], updates: int) -> None:
        """Take over a saved state. read: of "<kind>.<parameter name>", a piece of it."""
        for key, tensor in self.state().items():
            name = key.partition(".")[2]
            piece = self._pieces[name] if self._pieces else Piece.whole(tuple(tensor.shape))
            tensor.copy_(read(key, piece))
        self.updates = updates
        for parameter in self._rest.values():
            self._adamw.state[parameter]["step"].fill_(float(updates))


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and not any(part in name for part in NOT_HIDDEN)


def state_tensors(name: str, parameter: Tensor, optimizer: Literal["muon", "adamw"]) -> int:
    """How many tensors of a parameter's size its state is."""
    return 1 if optimizer == "muon" and is_hidden_matrix(name, parameter) else 2


def is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "embed_tokens" not in name


def default_rate(optimizer: Literal["muon", "adamw"], hidden_parameters: int) -> tuple[float, str]:
    """The highest learning rate when the recipe names none, and where it comes from.

    hidden_parameters: weights outside embedding and head.
    """
    kaplan = 0.003239 - 0.0001395 * math.log(max(hidden_parameters, 1))
    source = "0.003239 - 0.0001395·ln(parameters), Kaplan et al. 2020, equation D.1"
    if optimizer == "adamw":
        return float(f"{kaplan:.3g}"), source
    return float(f"{MUON_FACTOR * kaplan:.3g}"), f"{MUON_FACTOR:g} times AdamW's {source}"


# 0.9 M weights, bytes of Python source, 80 steps of 2,048 tokens, held-out nats at 1, 2.3 and 4.5 times Kaplan's rate:
# 2.735, 2.468, 2.393 (AdamW at 1 and 3 times: 2.883, 2.837). Short runs like high rates; Jordan's 0.02 is 4 times.
MUON_FACTOR = 3.0


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise AssertionError("the trainer gives every parameter a gradient buffer")
    return parameter.grad


def _adamw(named: Mapping[str, nn.Parameter], update: Update) -> torch.optim.AdamW:
    """torch's fused AdamW with its state made at once: a checkpoint has the same keys whenever it was written."""
    decayed = [parameter for name, parameter in named.items() if is_decayed(name, parameter)]
    plain = [parameter for name, parameter in named.items() if not is_decayed(name, parameter)]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, update.weight_decay), (plain, 0.0))
        if parameters
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=update.betas, fused=True)
    for parameter in named.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer
