"""Spread a model over the ranks of a layout: from single-device code to what one rank holds and does.

In one fixed order, each by a file of its own that knows nothing of the others: pipeline → tensor → context →
activation checkpointing → compile → shard; data parallel is the sums of the gradients (`sums.py`). The model is cut
while it lies on no device, so what a rank does not hold never exists there; then memory is taken and filled, piece by
piece, from whatever gives values: an initialisation, a published folder, a checkpoint of any other layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sheaf.errors import UsageError
from sheaf.model.adapters import Lora, attach, stored
from sheaf.model.compile import compile_decoder
from sheaf.model.config import ModelConfig
from sheaf.model.decoder import Decoder
from sheaf.model.families import AnyConfig, Model
from sheaf.model.other import OtherModel
from sheaf.model.other_config import OtherConfig
from sheaf.model.pieces import Piece, Values
from sheaf.model.recompute import Recompute, recompute_blocks
from sheaf.parallel.buckets import Buckets
from sheaf.parallel.context import split_attention
from sheaf.parallel.local import is_sharded, local
from sheaf.parallel.mesh import Axis, Group, Mesh
from sheaf.parallel.pipeline import Inputs, Pipeline, cut, keep_layers
from sheaf.parallel.schedule import stages_of
from sheaf.parallel.sums import EMBEDDING, GradientSums
from sheaf.parallel.tensor import split_tensors
from sheaf.parallel.vocabulary import Vocabulary
from sheaf.recipe import Communication, Layout


@dataclass(frozen=True)
class How:
    """What besides the layout decides how a rank computes, and what learns. recompute: of all blocks, or of each by its
    number. lora: adapters, beside which all else is frozen. frozen: names of parameters that would learn, and do not.
    """

    compile: bool = False
    recompute: Recompute | tuple[Recompute, ...] = "none"
    lora: Lora | None = None
    frozen: frozenset[str] = frozenset()
    communication: Communication = field(default_factory=Communication)
    buckets: Buckets = field(default_factory=Buckets)


def layers_of(config: AnyConfig, layout: Layout, place: int) -> list[range]:
    """The layers of each stage that a rank in this place of a pipeline holds."""
    if layout.pipeline == 1 or isinstance(config, OtherConfig):
        return [range(config.num_hidden_layers)]
    mine = stages_of(layout.schedule, layout.pipeline, place)
    stages = cut(config, layout.pipeline * len(mine))
    return [stages[number] for number in mine]


def cut_stage(
    model: Decoder, layers: range, layout: Layout, group: Callable[[Axis], Group], pieces: dict[str, Piece]
) -> None:
    """Leave a model that lies on no device a rank's part of some layers, before they are sharded. group: the rank's,
    along an axis. `pieces` says afterwards what each parameter holds."""
    if layout.pipeline > 1:
        keep_layers(model, layers)
    pieces.update({name: Piece.whole(tuple(p.shape)) for name, p in model.named_parameters()})
    if layout.tensor > 1:
        split_tensors(model, pieces, group("tensor"))
    if layout.context > 1:
        split_attention(model, group("context"))


class Spread:
    """What one rank holds of a model, and the passes that it takes part in. All methods are called by every rank.

    Raises UsageError for a model of another family that cannot be trained in this layout.
    """

    def __init__(self, config: AnyConfig, compute_dtype: torch.dtype, mesh: Mesh, how: How, values: Values) -> None:
        self.config, self.mesh, self.how = config, mesh, how
        layout = mesh.layout
        self.pieces: dict[str, Piece] = {}
        self.lora: Lora | None = None
        self.stored: set[str] = set()
        """Names of what a checkpoint holds: not what is frozen beside adapters, which lies elsewhere."""
        self.stages = [self._stage(layers, compute_dtype) for layers in layers_of(config, layout, mesh.at["pipeline"])]
        self.sharded = {name for name, parameter in self.parameters().items() if is_sharded(parameter)}
        self.fill(values)
        self.isolation = self._try_isolation()
        """How a model of another family keeps documents apart, in words; "" of the decoder."""
        self._tied = isinstance(config, ModelConfig) and config.tie_word_embeddings
        self.sums = GradientSums(self.trained(), self.pieces, mesh, self._tied, how.communication, how.buckets)
        decoders = [stage for stage in self.stages if isinstance(stage, Decoder)]
        self.pipeline = Pipeline(decoders, mesh, layout.schedule) if layout.pipeline > 1 else None
        self.vocabulary = Vocabulary(mesh.group("tensor"), config.vocab_size)

    def _stage(self, layers: range, compute_dtype: torch.dtype) -> Model:
        layout, mesh, pieces = self.mesh.layout, self.mesh, self.pieces
        model = self._unfilled(compute_dtype)
        if isinstance(model, Decoder):
            cut_stage(model, layers, layout, mesh.group, pieces)
        else:
            pieces.update({name: Piece.whole(tuple(p.shape)) for name, p in model.named_parameters()})
        how = self.how.recompute
        here = [number for number, _ in model.model.held()] if isinstance(model, Decoder) else layers
        recompute_blocks(model, [how if isinstance(how, str) else how[number] for number in here])
        compile_decoder(model, "on" if self.how.compile else "off")
        if layout.shard > 1:
            from sheaf.parallel.shard import shard_matrices  # torch's FSDP: two seconds

            shard_matrices(model, pieces, mesh, self.how.communication)
            return model.to_empty(device=mesh.ranks.device) if isinstance(model, Decoder) else model
        return _in_memory(model, mesh.ranks.device) if isinstance(model, Decoder) else model

    def _unfilled(self, compute_dtype: torch.dtype) -> Model:
        """The whole model before it is cut. A decoder takes no memory yet; others compute what is no weight in them (a
        rotary table, say) when they are made."""
        if isinstance(self.config, OtherConfig):
            model: Model = OtherModel(self.config, compute_dtype).to(self.mesh.ranks.device)
        else:
            with torch.device("meta"):
                model = Decoder(self.config, compute_dtype)
        if self.how.lora is not None:
            self.lora = attach(model, self.how.lora)
        self.stored |= stored(model).keys()
        for name, parameter in model.named_parameters():
            if name in self.how.frozen:
                parameter.requires_grad_(False)
        return model

    def parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by their published names; where they are sharded, the whole's handle."""
        return {name: parameter for stage in self.stages for name, parameter in stage.named_parameters()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Those that learn."""
        return {name: parameter for name, parameter in self.parameters().items() if parameter.requires_grad}

    def held(self) -> dict[str, Tensor]:
        """The tensors that lie here, by name: `pieces` says which part of each parameter they are."""
        return {name: local(parameter.detach()) for name, parameter in self.parameters().items()}

    def writes(self, name: str) -> bool:
        """Whether this rank is the first that holds its piece of a parameter."""
        at = self.mesh.at
        others = at["data"] + at["context"]
        if name not in self.sharded:
            others += at["shard"]
        if self.pieces[name].is_whole:
            others += at["tensor"]
        if self._tied and name == EMBEDDING:
            others += at["pipeline"]
        return others == 0

    @torch.no_grad()
    def fill(self, values: Values) -> None:
        """Take over values, piece by piece."""
        for name, tensor in self.held().items():
            tensor.copy_(values(name, self.pieces[name]))

    def _try_isolation(self) -> str:
        """Raises UsageError if a model of another family cannot keep documents apart, or not in this layout."""
        model = self.stages[0]
        if not isinstance(model, OtherModel):
            return ""
        said = model.isolation_in_words
        self._drop_gathered(model)
        if model.isolation == "rows" and self.sharded:
            raise UsageError(
                "this model cannot be sharded",
                where="train.layout",
                why=f"{said}, and ranks whose rows differ would make unequal numbers of passes",
                fix=f"the nearest layout of {self.mesh.ranks.world} ranks: {{data: {self.mesh.ranks.world}}}",
            )
        return said

    def _drop_gathered(self, model: Model) -> None:
        """What a forward without a backward has gathered of sharded weights."""
        if self.sharded:
            from sheaf.parallel.shard import reshard

            reshard(model)

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
            self._drop_gathered(stage)
        total = torch.zeros((), dtype=torch.float64, device=self.mesh.ranks.device)
        total += sum(sums)
        return total if self.counts else torch.zeros_like(total)

    @property
    def counts(self) -> bool:
        """Whether this rank's loss counts: of tensor ranks, which all hold the same one, the first does."""
        return self.mesh.at["tensor"] == 0 and self.mesh.is_last_stage

    def _loss(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        last = self.stages[-1]
        if self.vocabulary.is_whole:
            return last.next_token_loss(hidden_btd, labels_bt)
        return self.vocabulary.next_token_loss(hidden_btd, last.head_weight, labels_bt)

    def _measured(self, hidden_btd: Tensor, labels_bt: Tensor) -> Tensor:
        hidden_btd, last = hidden_btd.detach(), self.stages[-1]
        if self.vocabulary.is_whole:
            return last.per_token_loss(hidden_btd, labels_bt).double().sum()
        with torch.no_grad():
            return self.vocabulary.next_token_loss(hidden_btd, last.head_weight, labels_bt).double()

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


def _in_memory(model: Decoder, device: torch.device) -> Decoder:
    """As `to_empty`, whose way to strides imports sympy, a second of every rank's time."""
    return model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))  # pyright: ignore[reportPrivateUsage]
