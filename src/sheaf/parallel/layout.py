"""Which layout a run gets: the recipe's, if it can be, or the one that the model and the machine suggest.

A layout that cannot be is refused with every reason there is, and the nearest one that can be on as many ranks: the one
whose degrees differ from those asked for by the fewest doublings. Cost: the layouts of N ranks are few (hundreds for
N = 1,024), each is looked at in microseconds. `auto` is `parallel/choose.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sheaf.errors import UsageError
from sheaf.model.config import ModelConfig
from sheaf.model.families import AnyConfig
from sheaf.parallel.mesh import AXES, size_of
from sheaf.recipe import Communication, Layout

EXACT = Communication()


@dataclass(frozen=True)
class Facts:
    """What a layout depends on. batch: samples of a global step. micro_tokens: of one forward pass of a rank.
    memory_bytes: of a rank. compute_bytes: of a number that it computes with. update_bytes: of one weight's update, if
    replicas share the work of computing it. learned: share of the weights that learn. adapters: whether these are
    low-rank factors beside frozen ones. span: keys that a mean token sees (0: half the sequence). again: share of the
    blocks' forward passes that is computed a second time. update_flops: of one update of all matrices, by Muon."""

    config: AnyConfig
    sequence_length: int
    batch: int
    micro_tokens: int
    compile: bool
    packing: str
    memory_bytes: float
    compute_bytes: int = 2
    update_bytes: int = 0
    learned: float = 1.0
    adapters: bool = False
    communication: Communication = EXACT
    span: float = 0.0
    again: float = 0.0
    update_flops: float = 0.0


def of_ranks(layout: Layout, ranks: int | None) -> Layout:
    """A recipe's layout on so many ranks (None: as many as it says): data parallel takes what the others leave, unless
    the recipe says how much. Raises UsageError if that does not come out even."""
    rest = ranks_of(layout) // layout.data
    if ranks is None or ranks == ranks_of(layout):
        return layout
    if "data" in layout.model_fields_set or ranks % rest:
        raise UsageError(
            f"a layout of {describe(layout)} is no layout of {ranks} ranks",
            where="train.layout",
            fix=f"start {ranks_of(layout)} ranks, or leave train.layout.data out and start a multiple of {rest}",
        )
    return layout.model_copy(update={"data": ranks // rest})


def layout_on(layout: Layout | None, ranks: int) -> Layout:
    """A run's layout on as many ranks as there are now: others may have started them than wrote it down."""
    if layout is None:
        raise AssertionError("ranks choose a layout before they make their part of a model")
    if ranks_of(layout) == ranks:
        return layout
    return of_ranks(Layout.model_validate(layout.model_dump(exclude={"data"})), ranks)


def ranks_of(layout: Layout) -> int:
    return size_of(layout)


def check_layout(layout: Layout, facts: Facts) -> None:
    """Raise UsageError unless a run can have this layout."""
    reasons = list(problems(layout, facts))
    if not reasons:
        return
    near = nearest(layout, facts)
    raise UsageError(
        f"the model cannot be spread in this way: {describe(layout)}",
        where="train.layout",
        why="; ".join(reasons),
        fix=f"the nearest layout of {ranks_of(layout)} ranks: {describe(near)}" if near else "use fewer ranks",
    )


def problems(layout: Layout, facts: Facts) -> Iterator[str]:
    """Each reason why a layout cannot be."""
    if isinstance(facts.config, ModelConfig):
        yield from _decoder_problems(layout, facts, facts.config)
    elif layout.tensor * layout.context * layout.pipeline > 1:
        yield f"transformers' own code, which {facts.config.model_type} runs on, is spread by data and shard only"
    if facts.packing == "padded" and layout.tensor * layout.context > 1:
        yield "padded rows are of any length, which tensor and context ranks cannot divide evenly (train.packing)"
    if facts.sequence_length % (layout.tensor * layout.context):
        yield f"{facts.sequence_length} positions cannot be divided evenly over tensor × context ranks"
    if layout.shard > 1 and facts.communication.is_lossy:
        yield (
            f"gradients of sharded matrices are summed in fp32 or bf16, not as {facts.communication.gradients}"
            " (train.communication)"
        )
    samples = layout.data * layout.shard
    if facts.batch < samples:
        yield f"{facts.batch} samples of a global batch cannot be divided over data × shard = {samples} ranks"


def _decoder_problems(layout: Layout, facts: Facts, config: ModelConfig) -> Iterator[str]:
    heads = config.num_key_value_heads
    if layout.tensor > heads:
        yield f"{heads} key-value heads cannot be divided over {layout.tensor} tensor ranks"
    elif layout.context > 1 and heads % (layout.tensor * layout.context):
        yield f"{heads} key-value heads cannot be divided evenly over {layout.tensor} tensor × {layout.context} context"
    if layout.tensor > 1 and config.output_bias:
        yield "tensor parallel does not know models whose output projection has a bias"
    if layout.tensor > 1 and facts.adapters:
        yield "tensor parallel does not know adapters"
    yield from _pipeline_problems(layout, facts)


def _pipeline_problems(layout: Layout, facts: Facts) -> Iterator[str]:
    if layout.pipeline == 1:
        return
    stages = layout.pipeline * (2 if layout.schedule == "interleaved" else 1)
    if stages > facts.config.num_hidden_layers:
        yield f"{facts.config.num_hidden_layers} layers cannot be cut into {stages} stages"
    if layout.schedule == "interleaved":
        micro = micro_batches(layout, facts)
        if micro % layout.pipeline:
            yield f"{micro} micro-batches of a rank are no multiple of {layout.pipeline} stages, as interleaving needs"
    if layout.schedule == "zero-bubble" and facts.compile:
        yield "a zero-bubble schedule puts weights' gradients off, which compiled blocks cannot (train.compile: off)"


def micro_batches(layout: Layout, facts: Facts) -> int:
    """Micro-batches of a rank in a step."""
    share = -(-facts.batch // (layout.data * layout.shard))
    most = max(1, facts.micro_tokens // facts.sequence_length)
    return -(-share // most)


def nearest(layout: Layout, facts: Facts) -> Layout | None:
    """The layout of as many ranks that can be and differs least; None if there is none."""
    found = possible(ranks_of(layout), facts, layout.schedule)

    def distance(one: Layout) -> float:
        return sum(abs(math.log2(getattr(one, axis) / getattr(layout, axis))) for axis in AXES)

    return min(found, key=distance, default=None)


def describe(layout: Layout) -> str:
    """As one would write it in a recipe."""
    degrees = {axis: getattr(layout, axis) for axis in AXES if getattr(layout, axis) > 1}
    if layout.pipeline > 1 and layout.schedule != "1f1b":
        degrees["schedule"] = layout.schedule
    return "{" + ", ".join(f"{axis}: {degree}" for axis, degree in (degrees or {"data": 1}).items()) + "}"


def possible(ranks: int, facts: Facts, schedule: str = "1f1b") -> list[Layout]:
    """The layouts of so many ranks that can be."""
    return [one for one in all_layouts(ranks, schedule) if not any(problems(one, facts))]


def all_layouts(ranks: int, schedule: str = "1f1b") -> Iterator[Layout]:
    """Every way to factor so many ranks, whether a model can have it or not."""
    for degrees in _factors(ranks, len(AXES)):
        yield Layout.model_validate({**dict(zip(AXES, degrees, strict=True)), "schedule": schedule})


def _factors(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in _factors(number // first, parts - 1):
                yield (first, *rest)
