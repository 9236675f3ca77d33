"""Spread a model over the ranks of a layout: from single-device code to what one rank holds and does.

In one fixed order, each by a file of its own that knows nothing of the others: pipeline → tensor → context →
activation checkpointing → compile → shard; data parallel is the sums of the gradients (`sums.py`). The model is cut
while it lies on no device, so what a rank does not hold never exists there; then memory is taken and filled, piece by
piece, from whatever gives values: an initialisation, a published folder, a checkpoint of any other layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sheaf.model.compile import compile_decoder
from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Decoder
from sheaf.model.loss import next_token_loss, per_token_loss
from sheaf.model.pieces import Piece, Values
from sheaf.model.recompute import Recompute, recompute_blocks
from sheaf.parallel.context import split_attention
from sheaf.parallel.mesh import Axis, Group, Mesh
from sheaf.parallel.pipeline import Inputs, Pipeline, cut, keep_layers
from sheaf.parallel.schedule import stages_of
from sheaf.parallel.shard import local, reshard, shard_matrices
from sheaf.parallel.sums import EMBEDDING, GradientSums
from sheaf.parallel.tensor import split_tensors
from sheaf.parallel.vocabulary import Vocabulary
from sheaf.recipe import Layout


@dataclass(frozen=True)
class How:
    """What besides the layout decides how a rank computes. recompute: of all blocks, or of each by its number."""

    compile: bool = False
    recompute: Recompute | tuple[Recompute, ...] = "none"


def layers_of(config: ModelConfig, layout: Layout, place: int) -> list[range]:
    """The layers of each stage that a rank in this place of a pipeline holds."""
    if layout.pipeline == 1:
        return [range(config.num_hidden_layers)]
    mine = stages_of(layout.schedule, layout.pipeline, place)
    stages = cut(config, layout.pipeline * len(mine))
    return [stages[number] for number in mine]


def blank_stage(
    config: ModelConfig,
    compute_dtype: torch.dtype,
    layers: range,
    layout: Layout,
    group: Callable[[Axis], Group],
    pieces: dict[str, Piece],
) -> Decoder:
    """A rank's part of some layers, on no device, before it is sharded. group: the rank's, along an axis. `pieces` says
    afterwards what each parameter holds."""
    with torch.device("meta"):
        model = Decoder(config, compute_dtype)
    if layout.pipeline > 1:
        keep_layers(model, layers)
    pieces.update({name: Piece.whole(tuple(p.shape)) for name, p in model.named_parameters()})
    if layout.tensor > 1:
        split_tensors(model, pieces, group("tensor"))
    if layout.context > 1:
        split_attention(model, group("context"))
    return model


class Spread:
    """What one rank holds of a model, and the passes that it takes part in. All methods are called by every rank."""

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype, mesh: Mesh, how: How, values: Values) -> None:
        self.config, self.mesh, self.how = config, mesh, how
        layout = mesh.layout
        self.pieces: dict[str, Piece] = {}
        self.stages = [self._stage(layers, compute_dtype) for layers in layers_of(config, layout, mesh.at["pipeline"])]
        self.fill(values)
        tied = config.tie_word_embeddings
        self.sums = GradientSums(self.parameters(), self.pieces, mesh, tied)
        self.pipeline = Pipeline(self.stages, mesh, layout.schedule) if layout.pipeline > 1 else None
        self.vocabulary = Vocabulary(mesh.group("tensor"), config.vocab_size)

    def _stage(self, layers: range, compute_dtype: torch.dtype) -> Decoder:
        layout, mesh = self.mesh.layout, self.mesh
        model = blank_stage(self.config, compute_dtype, layers, layout, mesh.group, self.pieces)
        how = self.how.recompute
        recompute_blocks(model, [how if isinstance(how, str) else how[number] for number, _ in model.model.held()])
        compile_decoder(model, "on" if self.how.compile else "off")
        if layout.shard > 1:
            shard_matrices(model, self.pieces, mesh)
        return model.to_empty(device=mesh.ranks.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by their published names; where they are sharded, the whole's handle."""
        return {name: parameter for stage in self.stages for name, parameter in stage.named_parameters()}

    def held(self) -> dict[str, Tensor]:
        """The tensors that lie here, by name: `pieces` says which part of each parameter they are."""
        return {name: local(parameter.detach()) for name, parameter in self.parameters().items()}

    def writes(self, name: str) -> bool:
        """Whether this rank is the first that holds its piece of a parameter."""
        at = self.mesh.at
        others = at["data"] + at["context"]
        if name not in self.sums.sharded:
            others += at["shard"]
        if self.pieces[name].is_whole:
            others += at["tensor"]
        if self.config.tie_word_embeddings and name == EMBEDDING:
            others += at["pipeline"]
        return others == 0

    @torch.no_grad()
    def fill(self, values: Values) -> None:
        """Take over values, piece by piece."""
        for name, tensor in self.held().items():
            tensor.copy_(values(name, self.pieces[name]))

    # ---- passes

    def learn(self, micro: Sequence[tuple[Inputs, Tensor]], predictions: int) -> Tensor:
        """Forward and backward of a step. micro: for each micro-batch (ids, positions, documents), all of (b, t), and
        labels. predictions: of the global batch. Returns this rank's share of the sum of token losses, float64; after
        it all gradients are those of loss sum / predictions over the global batch."""
        self.sums.expect(len(micro))
        total = torch.zeros((), dtype=torch.float64, device=self.mesh.ranks.device)
        inputs = [self._mine(one) for one, _ in micro]
        labels = [self._my_labels(one) for _, one in micro]
        if self.pipeline is not None:
            sums = self.pipeline.run(inputs, lambda hidden, number: self._loss(hidden, labels[number]) / predictions)
            total += sum(one.double() for one in sums) * predictions if sums else 0.0
        else:
            for one, wanted in zip(inputs, labels, strict=True):
                loss = self._loss(self.stages[0](*one), wanted)
                (loss / predictions).backward()
                total += loss.detach()
        self.sums.finish()
        return total if self.counts else torch.zeros_like(total)

    def measure(self, micro: Sequence[tuple[Inputs, Tensor]]) -> Tensor:
        """This rank's share of the sum of token losses, float64; nothing is learned. The forward runs with gradients
        on, as in training, so that compiled layers are not compiled a second time."""
        inputs = [self._mine(one) for one, _ in micro]
        labels = [self._my_labels(one) for _, one in micro]
        if self.pipeline is not None:
            sums = self.pipeline.run(inputs, lambda hidden, n: self._measured(hidden, labels[n]), backward=False)
        else:
            sums = [self._measured(self.stages[0](*one), wanted) for one, wanted in zip(inputs, labels, strict=True)]
        for stage in self.stages:
            reshard(stage)
        total = torch.zeros((), dtype=torch.float64, device=self.mesh.ranks.device)
        total += sum(sums)
        return total if self.counts else torch.zeros_like(total)

    @property
    def counts(self) -> bool:
        """Whether this rank's loss counts: of tensor ranks, which all hold the same one, the first does."""
        return self.mesh.at["tensor"] == 0 and self.mesh.is_last_stage

    def _loss(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        head = self.stages[-1].head_weight
        if self.vocabulary.is_whole:
            return next_token_loss(hidden_btd, head, labels_bt)
        return self.vocabulary.next_token_loss(hidden_btd, head, labels_bt)

    def _measured(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        hidden_btd, head = hidden_btd.detach(), self.stages[-1].head_weight
        if self.vocabulary.is_whole:
            return per_token_loss(hidden_btd, head, labels_bt).double().sum()
        with torch.no_grad():
            return self.vocabulary.next_token_loss(hidden_btd, head, labels_bt).double()

    def _mine(self, inputs: Inputs) -> Inputs:
        """Ids and positions of this rank's stretch; documents of all positions, since attention sees all."""
        ids, positions, documents = inputs
        return ids[:, self._stretch(ids)], positions[:, self._stretch(ids)], documents

    def _my_labels(self, labels_bt: Tensor) -> Tensor:
        return labels_bt[:, self._stretch(labels_bt)]

    def _stretch(self, x_bt: Tensor) -> slice:
        size = x_bt.shape[1] // self.mesh.layout.context
        start = self.mesh.at["context"] * size
        return slice(start, start + size)
