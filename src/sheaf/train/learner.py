"""One step of training on one rank: a model spread over ranks, and its optimiser.

The loss of a step is Σ token losses of the global batch / valid tokens of the global batch, whatever the layout and the
split into micro-batches (a step that predicts nothing has loss 0): each backward adds its share of ∇l, the ranks'
shares are summed (`parallel/sums.py`), and every rank updates the pieces that it holds. Cost beyond forward and
backward: what the layout says, and one small message.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sheaf.errors import TrainingFailed
from sheaf.model.memory import peak_memory_bytes
from sheaf.model.pieces import Piece
from sheaf.order.loader import Batch, micro
from sheaf.parallel.collectives import agree, traffic
from sheaf.parallel.local import local
from sheaf.parallel.matrices import Matrices
from sheaf.parallel.parallelize import Spread
from sheaf.parallel.pipeline import Inputs
from sheaf.train.kept import kept_state
from sheaf.train.muon import Together
from sheaf.train.offload import HostCopies
from sheaf.train.optimizer import Optimizer, Update
from sheaf.train.spikes import SpikeGuard


@dataclass(frozen=True)
class StepResult:
    """Global figures of one step. positions: token positions that were computed, padding included. replaced: samples
    that stood in for damaged ones. skipped: its update was not made. busy: by rank, seconds that its passes took,
    without what it waited for others. peak_memory_bytes: of the rank that has had most at any time so far."""

    loss: float
    gradient_norm: float
    positions: int
    stop: bool
    replaced: int
    skipped: bool
    busy: tuple[float, ...]
    peak_memory_bytes: int


class NotFinite(TrainingFailed):
    """The loss of a step or its gradient is not finite; `not_finite` finds out why.

    share: this rank's of the loss. replaced: samples of the step that stood in for damaged ones.
    """

    def __init__(self, loss: float, norm: float, share: float, replaced: int) -> None:
        what = "training has diverged: the loss or its gradient is not finite"
        super().__init__(what, why=f"loss {loss}, gradient norm {norm}")
        self.loss, self.norm, self.share, self.replaced = loss, norm, share, replaced


class RanksDiffer(TrainingFailed):
    """The ranks no longer hold the same weights. From a checkpoint they may well again: memory fails once."""


class Learner:
    """spread: the model on this rank. micro_samples: samples of one forward pass. guard: judges spikes. offload: keep
    the optimiser's state in host memory, and update there (`offload.py`)."""

    def __init__(
        self,
        spread: Spread,
        update: Update,
        clip: float,
        micro_samples: int,
        guard: SpikeGuard | None = None,
        *,
        offload: bool = False,
    ) -> None:
        self.spread, self.ranks = spread, spread.mesh.ranks
        self.clip = clip
        self.micro_samples = micro_samples
        self.update = update
        self.guard = guard or SpikeGuard()
        # Parameters that are sharded have handles which the optimiser does not need to know: it sees what lies here.
        parameters = spread.trained()
        self._sharded = {name: parameters[name] for name in spread.sums.sharded}
        self._local = {
            name: nn.Parameter(local(p.detach())) if name in self._sharded else p for name, p in parameters.items()
        }
        self._host = HostCopies(self._held()) if offload else None
        if self._host is not None:
            self._local = self._host.parameters
        self.optimizer = self._optimizer()

    def step(
        self, batch: Batch, rate: float, stop: bool = False, watch: Callable[[], None] = lambda: None
    ) -> StepResult:
        """Train on this rank's part of a global batch. stop: this rank's wish; any rank's wish is everyone's. watch:
        called when the gradients are those of the global batch, before they are clipped.

        Raises, before the update, NotFinite if the loss or the gradient is not finite, and RollBack if it is a spike
        before which the run is to go back. Called by every rank.
        """
        begin, waited = time.perf_counter(), traffic.seconds
        parts = micro(batch, self.micro_samples)
        predictions = max(batch.valid_tokens, 1)
        loss_sum = self.spread.learn([tensors(part, self.ranks.device) for part in parts], predictions)
        watch()
        sums = self.spread.sums
        positions, replaced = sum(part.input_ids.size for part in parts), len(batch.replaced)
        if not self.spread.mesh.is_first_of_its_samples:
            positions = replaced = 0
        mine = [loss_sum.item(), float(positions), float(stop), float(replaced), sums.squares().item()]
        busy, peaks = [0.0] * self.ranks.world, [0.0] * self.ranks.world  # a place a rank, so that the sum says each
        busy[self.ranks.rank] = time.perf_counter() - begin - (traffic.seconds - waited)
        peaks[self.ranks.rank] = float(peak_memory_bytes(self.ranks.device))
        total, positions, stops, replaced, squares, *both = self.ranks.sum([*mine, *busy, *peaks])
        busy, peak = tuple(both[: self.ranks.world]), int(max(both[self.ranks.world :]))
        loss, norm = total / predictions, math.sqrt(squares)
        made = self.guard.passes(batch.step, loss, norm, self.ranks)
        if made and not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(loss, norm, loss_sum.item(), int(replaced))
        if made:
            if norm > self.clip:
                sums.scale(self.clip / norm)
            self._take_gradients()
            self.optimizer.step(rate)
            if self._host is not None:
                self._host.give_weights(self._held())
        sums.zero()
        return StepResult(loss, norm, int(positions), stops > 0, int(replaced), not made, busy, peak)

    def reset_optimizer(self) -> None:
        """Forget all momenta, what spikes are measured by, what sums have kept: the state before the first update."""
        self.guard.forget()
        if self._host is not None:
            self._host.take_weights(self._held())
        self.optimizer = self._optimizer()
        self.spread.sums.forget()

    def check_ranks_agree(self) -> None:
        """Raise RanksDiffer unless ranks that hold the same learned pieces hold the same bits. Called by every rank."""
        mesh, pieces = self.spread.mesh, self.spread.pieces
        held = {name: local(parameter.detach()) for name, parameter in self.spread.trained().items()}
        alike = {name: tensor for name, tensor in held.items() if pieces[name].is_whole}
        same = agree(_checksum(held), mesh.group("data", "context"), self.ranks.device)
        same &= agree(_checksum(alike), mesh.group("tensor"), self.ranks.device)
        if self.ranks.sum([not same])[0]:
            raise RanksDiffer(
                "the ranks no longer hold the same weights",
                why="an update was computed differently on one of them: unequal machines, or faulty memory",
                fix="resume from the last checkpoint; if it happens again, look for the machine that differs",
            )

    # ---- what a checkpoint holds

    def state(self) -> dict[str, tuple[Piece, Tensor]]:
        """The weights and optimiser state that this rank writes: "weight.<parameter>" and "<kind>.<parameter>"."""
        held = self.spread.held()
        weights = {f"weight.{name}": tensor for name, tensor in held.items() if name in self.spread.stored}
        found: dict[str, tuple[Piece, Tensor]] = {}
        for key, tensor in (weights | self.optimizer.state()).items():
            name = key.partition(".")[2]
            if self.spread.writes(name) and tensor.numel():
                found[key] = (self.spread.pieces[name], tensor)
        return found | kept_state(self.spread)

    def _optimizer(self) -> Optimizer:
        mesh, pieces = self.spread.mesh, self.spread.pieces

        def together(held: Mapping[str, Piece]) -> Together:
            return Matrices(held, mesh, share=not self.spread.how.communication.is_lossy).apply

        alone = self.ranks.world == 1
        return Optimizer(self._local.items(), self.update, pieces, None if alone else together)

    def _take_gradients(self) -> None:
        """Show the optimiser what lies here now of the sharded parameters and their gradients."""
        if self._host is not None:
            self._host.take_gradients(self._gradients())
            return
        for name, parameter in self._sharded.items():
            if parameter.grad is None:
                raise AssertionError("every parameter has a gradient after a step's passes")
            self._local[name].data = local(parameter.detach())
            self._local[name].grad = local(parameter.grad)

    def _held(self) -> dict[str, Tensor]:
        """What lies here of the parameters that learn."""
        return {name: local(parameter.detach()) for name, parameter in self.spread.trained().items()}

    def _gradients(self) -> dict[str, Tensor]:
        found = {name: p.grad for name, p in self.spread.trained().items()}
        return {name: local(gradient) for name, gradient in found.items() if gradient is not None}


def tensors(part: Batch, device: torch.device) -> tuple[Inputs, Tensor]:
    """A micro-batch as the model takes it: (ids, positions, documents), labels."""
    arrays = (part.input_ids, part.position_ids, part.document_ids, part.labels)
    here = (torch.from_numpy(x) for x in arrays)
    # From memory that may be paged out the copy to a GPU would wait for all the work that was given to it before. The
    # loader's memory is not pinned itself: it is filled again as soon as nobody holds it, perhaps before the copy.
    pinned = (x.pin_memory() for x in here) if device.type == "cuda" else here
    ids, positions, documents, labels = (x.to(device, non_blocking=True) for x in pinned)
    return (ids, positions, documents), labels


def measured_loss_sum(spread: Spread, batch: Batch, micro_samples: int) -> float:
    """This rank's share of the sum of the token losses of a batch, in nats; nothing is learned."""
    parts = micro(batch, micro_samples)
    return spread.measure([tensors(part, spread.mesh.ranks.device) for part in parts]).item()


def _checksum(held: Mapping[str, Tensor]) -> int:
    return sum(int(tensor.view(torch.int32).sum(dtype=torch.int64)) for tensor in held.values()) % 2**52
