"""Give each rank as much of a step as it gets done in the same time: speeds measured, and the split made by them.

How long a rank computed in a step is in the step's one message, so every rank knows it of all. Over a window of steps
the median of seconds over work, by the order's own measure of cost, is a rank's slowness; where several ranks share a
model, their samples are as slow as the slowest of them. At the end of a window the last step is split again by what was
measured (`order/balance.py`), and if the slowest rank would be at least 15% sooner ready, steps are split so from the
next one on. Every window is twice as long as the one before it, because passes get another shape with the split, for
which compiled layers are compiled again. Speeds are rounded, so that noise is no speed.

What a step holds, its loss and its gradient do not depend on the split, but for the order of sums. So speeds are in no
checkpoint: a resumed run begins with equal parts and measures again. A line of the journal has those of its step, by
which a trace finds the rank of a sample. Cost: microseconds a step; no message of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

from sheaf.order.loader import Batch
from sheaf.parallel.mesh import Mesh

WINDOW = 32  # steps, the first time
UNCOUNTED = 2  # of a window: caches fill, layers are compiled
GAIN = 0.15  # of the slowest rank's time
GRAIN = 16  # speeds are this part of the fastest, or a multiple of it


class Pace:
    """speeds: by which steps are split now; None: equal parts. Called by every rank, with the same figures."""

    def __init__(self, mesh: Mesh) -> None:
        self.speeds: tuple[float, ...] | None = None
        self._group = mesh.sample_rank_of  # by rank
        self._window = WINDOW
        self._slowness: list[list[float]] = []

    def note(self, batch: Batch, busy: Sequence[float]) -> None:
        """A step was made; at the end of a window `speeds` may change. busy: by rank, seconds."""
        split, order = batch.split, batch.order
        work = [float(order.cost(split.rows[slots]).sum()) for slots in split.slots_r]
        seconds = [max(b for b, group in zip(busy, self._group, strict=True) if group == g) for g in range(len(work))]
        self._slowness.append([s / w if w else 0.0 for s, w in zip(seconds, work, strict=True)])
        if len(self._slowness) < self._window:
            return
        slowness = [self._median(g) for g in range(len(work))]
        self._slowness = []
        speeds = _rounded([1 / one for one in slowness])
        parts = order.split_rows(split.rows, len(work), speeds)
        now, then = (
            max(float(order.cost(split.rows[slots]).sum()) * slow for slots, slow in zip(one, slowness, strict=True))
            for one in (split.slots_r, parts)
        )
        if then <= (1 - GAIN) * now:
            self.speeds = speeds
            self._window *= 2

    def _median(self, group: int) -> float:
        """Of seconds over work; a rank that had no work in the window is as slow as it was thought to be."""
        found = [one[group] for one in self._slowness[UNCOUNTED:] if one[group] > 0]
        if found:
            return statistics.median(found)
        known = [one for one in range(len(self._slowness[0])) if any(step[one] > 0 for step in self._slowness)]
        speeds = self.speeds or (1.0,) * len(self._slowness[0])
        return self._median(known[0]) * speeds[known[0]] / speeds[group]


def timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - start


def _rounded(speeds: Sequence[float]) -> tuple[float, ...]:
    """Relative to the fastest, at least one grain."""
    most = max(speeds)
    return tuple(max(1, round(GRAIN * speed / most)) / GRAIN for speed in speeds)
