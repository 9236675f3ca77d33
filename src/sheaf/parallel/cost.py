"""How long a step takes under a layout: what computing and sending cost, at the rates that the ranks have.

With P weights (gradients: of those that learn), T tokens of a global batch, b bytes of a number in the compute dtype,
m micro-batches of a rank, and a pass being what layers, attention and head take for one of these:

    layers      products of the layers, attention by its own rate and by the keys that a token sees, head and loss by
    attention   theirs: FLOP of a rank's tokens over the rate that is reached
    head
    again       what activation checkpointing computes a second time of the blocks' forward passes
    bubble      (p−1)/(m·v) of all these; v: 2 if stages are interleaved, 3 if weights' gradients fill the gaps
    update      bytes that the optimiser reads and writes, and Muon's products, which replicas share
    data        a sum of the held weights' gradients as `communication` sends them, of which the last backward pass
                hides as much as it takes; Muon's updates in the compute dtype once round
    shard       per micro-batch, the weights gathered twice in the compute dtype, and gradients scattered in fp32, less
                what hides behind the pass (`Rates.shard_hides`)
    tensor      per layer and micro-batch eight gathers or scatters of the activations: two forward and two backward
                around attention, as many around the MLP
    context     per layer and micro-batch eight exchanges of heads against positions
    pipeline    activations to the next stage and back, per micro-batch; the gradient of a tied embedding

Left out: the loader, which runs ahead, and the vocabulary's sums. `layout: auto` ranks layouts by it, `sheaf plan`
forecasts with it. bench/auto_layout.py and bench/plan.py print it beside what was measured, bench/plan_published.py
beside what others have published.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sheaf.parallel.layout import Facts, micro_batches
from sheaf.parallel.links import Link, Machine
from sheaf.parallel.mesh import AXES, Axis, size_of
from sheaf.parallel.reduce import share_sent
from sheaf.recipe import Layout

FORWARD = 1 / 3  # of a pass
# Of one weight's update: AdamW reads weight, gradient and two moments and writes three; clipping and zeroing touch the
# gradient three times. Muon's momentum, direction and update come to about as much.
UPDATE_BYTES = 40


@dataclass(frozen=True)
class Cost:
    """Seconds of one global step, by what they go to."""

    layers: float = 0.0
    attention: float = 0.0
    head: float = 0.0
    again: float = 0.0
    bubble: float = 0.0
    update: float = 0.0
    data: float = 0.0
    shard: float = 0.0
    tensor: float = 0.0
    context: float = 0.0
    pipeline: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.to_json().values())

    @property
    def communication(self) -> float:
        """What sending adds."""
        return self.data + self.shard + self.tensor + self.context + self.pipeline

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def step_seconds(layout: Layout, facts: Facts, machine: Machine) -> float:
    """Of one global step."""
    return cost_of(layout, facts, machine).seconds


def cost_of(layout: Layout, facts: Facts, machine: Machine) -> Cost:
    """Of one global step, by its parts."""
    work, micro, rates = Work.of(layout, facts), micro_batches(layout, facts), machine.rates
    layers, attention = work.layers / rates.layers, work.attention / rates.attention
    head = work.head / rates.head
    again = facts.again * (layers + attention) * FORWARD
    computing = layers + attention + head + again
    stages = {"interleaved": 2, "zero-bubble": 3}.get(layout.schedule, 1)  # docs/layouts.md
    bubble = computing * (layout.pipeline - 1) / (micro * stages)
    return Cost(
        layers=layers,
        attention=attention,
        head=head,
        again=again,
        bubble=bubble,
        update=_update(layout, facts, machine, work),
        data=_data(layout, facts, machine, work, (computing - again) / micro),
        shard=_shard(layout, facts, machine, work, computing / micro),
        tensor=_between("tensor", layout, facts, machine, work),
        context=_between("context", layout, facts, machine, work),
        pipeline=_pipeline(layout, facts, machine, work),
    )


@dataclass(frozen=True)
class Work:
    """What one rank has to do in a step. layers, attention, head: FLOP. held: weights, before they are sharded.
    hidden: bytes of a micro-batch's activations between two blocks, on all ranks that share its samples."""

    layers: float
    attention: float
    head: float
    held: float
    hidden: float

    @staticmethod
    def of(layout: Layout, facts: Facts) -> Work:
        config, length = facts.config, facts.sequence_length
        samples = -(-facts.batch // (layout.data * layout.shard))  # of the rank with most
        positions = samples * length / layout.context
        span = facts.span or length / 2
        products = config.flops_per_token(0.0, facts.learned)
        scores = config.flops_per_token(span, facts.learned) - products
        head = (4 + 2 * facts.learned) * config.vocab_size * config.hidden_size
        share = positions / (layout.tensor * layout.pipeline)
        micro = samples / micro_batches(layout, facts)
        return Work(
            layers=(products - head) * share,
            attention=scores * share,
            head=head * share,
            held=config.parameters() / (layout.tensor * layout.pipeline),
            hidden=micro * length * config.hidden_size * facts.compute_bytes,
        )


def _update(layout: Layout, facts: Facts, machine: Machine, work: Work) -> float:
    held = work.held * facts.learned / layout.shard
    muon = facts.update_flops / (size_of(layout) / layout.pipeline) / layout.pipeline
    return held * UPDATE_BYTES / machine.rates.update + muon / machine.rates.muon


def _data(layout: Layout, facts: Facts, machine: Machine, work: Work, pass_seconds: float) -> float:
    """What the sums of the gradients add to a step, and the updates that replicas share."""
    copies = layout.data * layout.context
    if copies == 1:
        return 0.0
    link, learned = _link("data", layout, machine), work.held * facts.learned / layout.shard
    gradients = link.sum_seconds(4 * learned * share_sent(facts.communication, copies), copies)
    updates = link.part_seconds(facts.update_bytes * learned, copies)
    return max(0.0, gradients - machine.rates.data_hides * pass_seconds) + updates


def _shard(layout: Layout, facts: Facts, machine: Machine, work: Work, pass_seconds: float) -> float:
    if layout.shard == 1:
        return 0.0
    link, micro = _link("shard", layout, machine), micro_batches(layout, facts)
    weights = 2 * link.part_seconds(work.held * facts.compute_bytes, layout.shard)
    gradients = link.part_seconds(4 * work.held * facts.learned, layout.shard)
    layers = facts.config.num_hidden_layers / layout.pipeline
    one = weights + gradients + 3 * layers * link.latency
    return micro * max(0.0, one - machine.rates.shard_hides * pass_seconds)


def _between(axis: Axis, layout: Layout, facts: Facts, machine: Machine, work: Work) -> float:
    """What tensor ranks gather and scatter, or context ranks exchange, in every layer."""
    ranks = layout.tensor if axis == "tensor" else layout.context
    if ranks == 1:
        return 0.0
    link, micro = _link(axis, layout, machine), micro_batches(layout, facts)
    held = work.hidden / layout.context / (layout.tensor if axis == "context" else 1)
    layers = facts.config.num_hidden_layers / layout.pipeline
    seconds = micro * layers * (8 + 4 * facts.again) * (link.part_seconds(held, ranks) + link.latency)
    return seconds * (1 - machine.rates.tensor_hides) if axis == "tensor" else seconds


def _pipeline(layout: Layout, facts: Facts, machine: Machine, work: Work) -> float:
    if layout.pipeline == 1:
        return 0.0
    link, micro, config = _link("pipeline", layout, machine), micro_batches(layout, facts), facts.config
    one = work.hidden / (layout.context * layout.tensor) / link.bytes_per_second + link.latency
    seconds = 2 * micro * one
    if getattr(config, "tie_word_embeddings", False):  # its first and last stage sum the embedding's gradient
        seconds += link.sum_seconds(4 * config.vocab_size * config.hidden_size / layout.tensor, 2)
    return seconds


def _link(axis: Axis, layout: Layout, machine: Machine) -> Link:
    """What a group along an axis talks over: axes further in have neighbouring numbers. Groups that leave a host at
    once share its wire, and a group with several ranks there crosses it once for all of them."""
    inner = size_of(layout, AXES[AXES.index(axis) + 1 :])
    if inner * getattr(layout, axis) <= machine.host_ranks:
        return machine.host
    groups = min(inner, machine.host_ranks)
    return Link(min(machine.host.bytes_per_second, machine.hosts.bytes_per_second / groups), machine.hosts.latency)
