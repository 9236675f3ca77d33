"""The learning rate of a step: a linear warm-up, then a cosine, a constant with a decay at the end, or a constant.

A pure function of (step, steps, schedule): a resumed run computes what an uninterrupted one did. `constant-with-decay`
is the warm-up–stable–decay shape with the decay 1 - √x, which Hägele et al. 2024 (arXiv 2405.18392, section 3) found
to match a cosine tuned to the length; the cosine is that of Loshchilov and Hutter 2017 (arXiv 1608.03983).
"""

from __future__ import annotations

import math

from sheaf.recipe import Schedule


def learning_rate(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """The rate of step 0 … steps-1. It never is 0 in the warm-up, and is `schedule.final`·peak at the last step, or the
    peak where it stays constant."""
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "constant":
        return peak
    if schedule.kind != "constant-with-decay":
        return peak * _cosine(_progress(step, warmup, steps), schedule.final)
    start = max(warmup, steps - max(1, round(schedule.decay * steps))) if schedule.decay > 0 else steps
    if step < start:
        return peak
    return peak * _one_minus_root(_progress(step + 1, start, steps + 1), schedule.final)


def _progress(step: int, start: int, stop: int) -> float:
    """0 at start, 1 at the last step before stop."""
    return min(1.0, (step - start) / max(1, stop - 1 - start))


def _cosine(x: float, final: float) -> float:
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * x))


def _one_minus_root(x: float, final: float) -> float:
    return final + (1.0 - final) * (1.0 - math.sqrt(x))
