"""`layout: auto`: of all layouts that can be and fit into memory, the one whose step is shortest by estimate.

The estimate (`cost.py`) rests on what the ranks measured of each other (`links.py`). It is good to a quarter at best:
of layouts about as fast as the best, the one is taken that asks the least: data parallel before sharding, then
context, tensor, pipeline. If none fits, the one that takes the least memory.
"""

from __future__ import annotations

from sheaf.parallel.cost import step_seconds
from sheaf.parallel.layout import Facts, check_layout, describe, possible
from sheaf.parallel.links import Link, Machine
from sheaf.recipe import Layout

WEIGHT_BYTES, LEARNING_BYTES = 4, 12  # a weight; if it learns, its gradient and AdamW's two moments besides: all fp32
ROOM = 0.6  # share of a rank's memory that these may take; activations and the rest want theirs
ABOUT = 1.25  # times the shortest step: no estimate is better than that


def choose(ranks: int, facts: Facts, machine: Machine) -> tuple[Layout, list[str]]:
    """The layout, and why, in two lines. Raises UsageError if the model has none on so many ranks."""
    layouts = possible(ranks, facts)
    if not layouts:
        check_layout(Layout(data=ranks), facts)
    least = min(_state(one, facts) for one in layouts)
    room = max(ROOM * facts.memory_bytes, least)
    seconds = {one: step_seconds(one, facts, machine) for one in layouts if _state(one, facts) <= room}
    shortest = min(seconds.values())
    best = min((one for one, took in seconds.items() if took <= ABOUT * shortest), key=_demands)
    return best, [_because(best, seconds, least <= ROOM * facts.memory_bytes), _measured(facts, machine)]


def _state(layout: Layout, facts: Facts) -> float:
    """Bytes of a rank's weights, gradients and optimiser state."""
    weight = WEIGHT_BYTES + LEARNING_BYTES * facts.learned
    return weight * facts.config.parameters() / (layout.shard * layout.tensor * layout.pipeline)


def _demands(layout: Layout) -> tuple[int, ...]:
    return layout.pipeline, layout.tensor, layout.context, layout.shard


def _because(best: Layout, seconds: dict[Layout, float], fits: bool) -> str:
    others = sorted((took, describe(one)) for one, took in seconds.items() if one != best)[:2]
    beside = ", ".join(f"{name} {_seconds(took)}" for took, name in others)
    why = f"{_seconds(seconds[best])} a step by estimate" + (f"; {beside}" if beside else "; no other can be or fits")
    return f"layout {describe(best)}: {why}" + ("" if fits else "; it may not fit into memory even so")


def _measured(facts: Facts, machine: Machine) -> str:
    links = f"{_rate(machine.host)} between ranks"
    if machine.hosts != machine.host:
        links = f"{_rate(machine.host)} inside a host of {machine.host_ranks}, {_rate(machine.hosts)} between hosts"
    state, room = _state(Layout(), facts), ROOM * facts.memory_bytes
    memory = f"weights, gradients and optimiser state {_gb(state)} a replica, room for {_gb(room)} a rank"
    return f"measured: {machine.rates.layers / 1e9:,.0f} GFLOP/s a rank, {links}; {memory}"


def _rate(link: Link) -> str:
    return (
        f"{link.bytes_per_second / 1e6:,.0f} MB/s"
        if link.bytes_per_second >= 1e7
        else (f"{link.bytes_per_second / 1e6:.1f} MB/s")
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.1f} ms"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"
