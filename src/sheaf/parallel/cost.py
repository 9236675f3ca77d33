"""How long a step takes under a layout, by estimate: what computing and sending cost, as the machine was measured.

With P weights (gradients: of those that learn), T tokens of a global batch, b bytes of a number in the compute dtype,
and m micro-batches of a rank:

    computing   FLOP of T tokens / (N ranks · flops of a rank), stretched by a pipeline's bubble (p−1)/(m+p−1)
    data        a sum of the held weights' gradients in fp32, of which the last backward pass, 2/3 of a
                micro-batch's time, hides as much as it takes; Muon's updates in the compute dtype once round
    shard       per micro-batch, the weights gathered twice in the compute dtype, and gradients scattered in fp32
    tensor      per layer and micro-batch eight gathers or scatters of the activations: two forward and two backward
                around attention, as many around the MLP
    context     per layer and micro-batch eight exchanges of heads against positions
    pipeline    activations to the next stage and back, per micro-batch; the gradient of a tied embedding

Left out: norms, the optimiser's arithmetic, the vocabulary's sums; they are the same or small. An estimate ranks
layouts; it is no forecast of a run. bench/auto_layout.py prints it beside what was measured.
"""

from __future__ import annotations

from sheaf.parallel.layout import Facts, micro_batches
from sheaf.parallel.links import Link, Machine
from sheaf.parallel.mesh import AXES, Axis, size_of
from sheaf.recipe import Layout

OF_PEAK = 0.6  # of the rate of bare products a step reaches about so much: attention, norms and loss are none
BACKWARD = 2 / 3  # of a pass


def step_seconds(layout: Layout, facts: Facts, machine: Machine) -> float:
    """Of one global step."""
    config, micro = facts.config, micro_batches(layout, facts)
    tokens = facts.batch * facts.sequence_length
    flops = config.flops_per_token(facts.sequence_length / 2, facts.learned) * tokens
    computing = flops / (size_of(layout) * machine.flops * OF_PEAK)
    if layout.pipeline > 1:
        stages = layout.pipeline * (2 if layout.schedule == "interleaved" else 1)
        computing *= 1 + (layout.pipeline - 1) / (micro * stages / layout.pipeline)
    held = config.parameters() / (layout.tensor * layout.pipeline)
    hidden = tokens / (layout.data * layout.shard * micro) * config.hidden_size * facts.compute_bytes
    layers = config.num_hidden_layers / layout.pipeline
    seconds = computing + _data(layout, facts, machine, held * facts.learned, computing / micro)
    if layout.shard > 1:
        link = _link("shard", layout, machine)
        weights = 2 * link.part_seconds(held * facts.compute_bytes, layout.shard)
        gradients = link.part_seconds(4 * held * facts.learned, layout.shard)
        seconds += micro * (weights + gradients + 3 * layers * link.latency)
    if layout.tensor > 1:
        link = _link("tensor", layout, machine)
        one = link.part_seconds(hidden / layout.context, layout.tensor) + link.latency
        seconds += micro * layers * 8 * one
    if layout.context > 1:
        link = _link("context", layout, machine)
        one = link.part_seconds(hidden / (layout.context * layout.tensor), layout.context) + link.latency
        seconds += micro * layers * 8 * one
    if layout.pipeline > 1:
        link = _link("pipeline", layout, machine)
        seconds += 2 * micro * (hidden / (layout.context * layout.tensor) / link.bytes_per_second + link.latency)
        if getattr(config, "tie_word_embeddings", False):  # its first and last stage sum the embedding's gradient
            seconds += link.sum_seconds(4 * config.vocab_size * config.hidden_size / layout.tensor, 2)
    return seconds


def _data(layout: Layout, facts: Facts, machine: Machine, learned: float, pass_seconds: float) -> float:
    """What the sums of the gradients add to a step, and the updates that replicas share. learned: weights of a rank."""
    copies = layout.data * layout.context
    if copies == 1:
        return 0.0
    link = _link("data", layout, machine)
    gradients = link.sum_seconds(4 * learned / layout.shard, copies)
    updates = link.part_seconds(facts.update_bytes * learned / layout.shard, copies)
    return max(0.0, gradients - BACKWARD * pass_seconds) + updates


def _link(axis: Axis, layout: Layout, machine: Machine) -> Link:
    """What a group along an axis talks over: axes further in have neighbouring numbers."""
    extent = size_of(layout, AXES[AXES.index(axis) :])
    return machine.host if extent <= machine.host_ranks else machine.hosts
