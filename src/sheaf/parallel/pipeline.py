"""Pipeline parallel: each rank holds some of the layers, and micro-batches go from rank to rank.

The layers are cut into stages so that the dearest stage is as cheap as can be, the head counted as the layers that it
costs as much as (`cut`). `schedule.py` says who does what when; `Pipeline` does it: it receives what a pass needs,
runs it, sends on what it gave. What arrives next is asked for before the pass at hand begins, and what is sent is not
waited for, so a transfer and a pass overlap. Messages of one border and direction have a process group of their own, in
which they come in the order of micro-batches: so no two ranks can wait for each other crosswise, on any backend.

Cost: one (b, t, d) tensor in the compute dtype a micro-batch and border, forward and backward; the bubble is
`Plan.bubble`. Memory: a stage's activations of the micro-batches in flight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Decoder
from sheaf.parallel.collectives import traffic, waiting
from sheaf.parallel.deferred import DeferredWeights
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.schedule import Kind, Pass, plan, stages_of

Inputs = tuple[Tensor, Tensor, Tensor]  # (token ids, position ids, document ids) of a micro-batch
AHEAD = 2  # messages asked for before they are needed


def cut(config: ModelConfig, stages: int) -> list[range]:
    """The layers of each stage: consecutive, at least one, and the largest cost of a stage as small as can be."""
    layers = config.num_hidden_layers
    head = config.vocab_size * config.hidden_size / config.layer_matrices()
    cost = [1.0] * layers
    cost[-1] += head
    sums = [sum(cost[:n]) for n in range(layers + 1)]
    # best[n]: the smallest largest cost of the first n layers in so many stages, and where the last of them begins.
    best: list[tuple[float, list[int]]] = [(sums[n], [0]) for n in range(layers + 1)]
    for stage in range(1, stages):
        best = [
            min(
                ((max(best[k][0], sums[n] - sums[k]), [*best[k][1], k]) for k in range(stage, n)),
                key=lambda found: found[0],
                default=(float("inf"), []),
            )
            for n in range(layers + 1)
        ]
    starts = [*best[layers][1], layers]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


def keep_layers(model: Decoder, layers: range) -> None:
    """Leave a model these layers, and what lies before the first or after the last of all."""
    for number in range(len(model.model.layers)):
        if number not in layers:
            model.model.layers[number] = cast(nn.Module, None)
    model.begins, model.ends = layers.start == 0, layers.stop == model.config.num_hidden_layers
    if not model.ends:
        del model.model.norm
    if not model.begins and not (model.ends and model.lm_head is None):
        del model.model.embed_tokens
    if not model.ends:
        model.lm_head = None


class Pipeline:
    """One rank's stages at work. Every rank of the pipeline calls `run` with the same micro-batches."""

    def __init__(self, stages: Sequence[Decoder], mesh: Mesh, kind: Kind) -> None:
        """stages: this rank's, in their order."""
        group = mesh.group("pipeline")
        self.rank, self.ranks = group.rank, group.size
        self.kind: Kind = kind
        self.numbers = stages_of(kind, self.ranks, self.rank)
        self.stages = dict(zip(self.numbers, stages, strict=True))
        self.count = self.ranks * len(self.numbers)
        self.dtype, self.device = stages[0].compute_dtype, mesh.ranks.device
        self._tensor, self._size = mesh.layout.tensor, stages[0].config.hidden_size
        self.deferred = [DeferredWeights(stage) for stage in stages] if kind == "zero-bubble" else []
        self._borders = mesh.borders(self.count)

    def run(
        self, micro: Sequence[Inputs], loss: Callable[[Tensor, int], Tensor], *, backward: bool = True
    ) -> list[Tensor]:
        """Take micro-batches through the pipeline. loss: of the last stage's hidden states and the micro-batch's
        number, a scalar to be differentiated. Returns the losses, on the rank with the last stage; elsewhere nothing.
        """
        made = plan(self.kind, self.ranks, len(micro), backward=backward)
        game = _Running(self, micro, loss, made.passes[self.rank], backward)
        for one in made.passes[self.rank]:
            game.do(one)
        game.settle()
        return game.losses

    def shape(self, inputs: Inputs) -> tuple[int, int, int]:
        """(b, t, d) of what goes from stage to stage: tensor ranks hold a stretch of the positions between blocks."""
        b, t = inputs[0].shape
        return b, t // self._tensor, self._size

    def border(self, lower: int, forward: bool) -> dist.ProcessGroup:
        """The group for messages between stages `lower` and `lower` + 1."""
        return self._borders[lower, forward]

    def rank_of(self, stage: int) -> int:
        return stage % self.ranks


class _Running:
    """One `run`: what has arrived, what is under way."""

    def __init__(
        self,
        pipeline: Pipeline,
        micro: Sequence[Inputs],
        loss: Callable[[Tensor, int], Tensor],
        passes: Sequence[Pass],
        backward: bool,
    ) -> None:
        self.pipeline, self.micro, self.loss, self.backward = pipeline, micro, loss, backward
        self.losses: list[Tensor] = []
        self._awaited = [one for one in passes if self._source(one) is not None]
        self._asked: dict[Pass, tuple[Tensor, dist.Work]] = {}
        self._sending: list[tuple[dist.Work, Tensor]] = []
        self._kept: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
        self._ask()

    def do(self, one: Pass) -> None:
        if one.work == "forward":
            self._forward(one)
        elif one.work == "backward":
            self._backward(one)
        else:
            self._deferred(one).run()

    def settle(self) -> None:
        """Wait until all that was sent has left."""
        with waiting(0):
            for work, _ in self._sending:
                work.wait()

    def _forward(self, one: Pass) -> None:
        stage = self.pipeline.stages[one.stage]
        ids, positions, documents = self.micro[one.micro]
        received = None if stage.begins else self._received(one).requires_grad_(self.backward)
        output = stage(ids if received is None else received, positions, documents)
        if stage.ends:
            output = self.loss(output, one.micro)
            self.losses.append(output.detach())
        else:
            self._send(Pass("forward", one.stage + 1, one.micro), output.detach())
        if self.backward:
            self._kept[one.stage, one.micro] = (received, output)

    def _backward(self, one: Pass) -> None:
        received, output = self._kept.pop((one.stage, one.micro))
        gradient = None if self.pipeline.stages[one.stage].ends else self._received(one)
        with self._deferred(one) if self.pipeline.deferred else nullcontext():
            if output.requires_grad:  # not so of a first stage that is frozen
                torch.autograd.backward(output, gradient)
        if received is not None and received.grad is not None:
            self._send(Pass("backward", one.stage - 1, one.micro), received.grad)

    def _deferred(self, one: Pass) -> DeferredWeights:
        return self.pipeline.deferred[self.pipeline.numbers.index(one.stage)]

    # ---- messages

    def _source(self, one: Pass) -> int | None:
        """The stage that sends what a pass needs; None if it needs nothing."""
        if one.work == "forward":
            return one.stage - 1 if one.stage > 0 else None
        if one.work == "backward":
            return one.stage + 1 if one.stage < self.pipeline.count - 1 else None
        return None

    def _ask(self) -> None:
        while self._awaited and len(self._asked) < AHEAD:
            one = self._awaited.pop(0)
            source = self._source(one)
            if source is None:
                continue
            shape = self.pipeline.shape(self.micro[one.micro])
            buffer = torch.empty(shape, dtype=self.pipeline.dtype, device=self.pipeline.device)
            group = self.pipeline.border(min(source, one.stage), one.work == "forward")
            work = dist.irecv(buffer, group=group, group_src=self._place(source, one.stage))
            self._asked[one] = (buffer, _work(work))

    def _received(self, one: Pass) -> Tensor:
        buffer, work = self._asked.pop(one)
        with waiting(0):
            work.wait()
        self._ask()
        return buffer

    def _send(self, to: Pass, tensor: Tensor) -> None:
        source = to.stage - 1 if to.work == "forward" else to.stage + 1
        group = self.pipeline.border(min(source, to.stage), to.work == "forward")
        tensor = tensor.contiguous()
        work = dist.isend(tensor, group=group, group_dst=self._place(to.stage, source))
        self._sending.append((_work(work), tensor))
        traffic.bytes += tensor.nbytes
        self._sending = [(work, kept) for work, kept in self._sending if not work.is_completed()]

    def _place(self, of: int, other: int) -> int:
        """Place of a stage's rank in the group of a border: the lower rank comes first."""
        return int(self.pipeline.rank_of(of) > self.pipeline.rank_of(other))


def _work(work: dist.Work | None) -> dist.Work:
    if work is None:
        raise AssertionError("both ends of a border are in its group")
    return work
