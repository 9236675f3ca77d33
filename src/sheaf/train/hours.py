"""How many steps fit into a budget of hours: measured before step 0 and then written down, so that schedule and end are
known from the first step on.

The lower quartile of some steps counts: what else runs on the machine now may be gone in a minute.
"""

from __future__ import annotations

import time

from sheaf.order.loader import Loader
from sheaf.train.learner import Learner

PROBE_STEPS, PROBE_SECONDS = 17, 10.0  # the first one compiles and does not count


def steps_for_hours(hours: float, learner: Learner, loader: Loader, evaluation: int) -> tuple[int, float]:
    """How many steps fit, and the seconds of one, from the loader's steps, made at rate 0; their traces are wiped out.

    evaluation: steps of the held-out split that are looked at each time. Called by every rank.
    """
    spread, ranks = learner.spread, learner.ranks
    before = {name: tensor.clone() for name, tensor in spread.held().items()}
    seconds: list[float] = []
    for batch in loader:
        start = time.perf_counter()
        learner.step(batch, rate=0.0)
        seconds.append(time.perf_counter() - start)
        if ranks.from_first([len(seconds) > 4 and sum(seconds[1:]) > PROBE_SECONDS])[0]:
            break
    spread.fill(lambda name, _: before[name])
    learner.reset_optimizer()
    step_seconds = sorted(seconds[1:] or seconds)[(len(seconds) - 1) // 4]
    evaluations = 10 * evaluation * step_seconds / 3
    (steps,) = ranks.from_first([max(1, (3600 * hours - sum(seconds) - evaluations) // step_seconds)])
    return int(steps), step_seconds
