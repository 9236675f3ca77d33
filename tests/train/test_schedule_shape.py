"""The learning rate over a run."""

from __future__ import annotations

import math

import pytest

from sheaf.recipe import Schedule
from sheaf.train.schedule import learning_rate


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [learning_rate(step, steps, 1.0, schedule) for step in range(steps)]


@pytest.mark.parametrize("kind", ["cosine", "constant-with-decay"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_the_rate_rises_to_the_peak_falls_to_the_end_and_is_never_zero(kind: str, steps: int) -> None:
    schedule = Schedule(kind=kind, warmup=0.1, final=0.1)  # type: ignore[arg-type]
    got = rates(schedule, steps)
    warm = round(0.1 * steps)
    assert got[:warm] == sorted(got[:warm])
    assert got[warm:] == sorted(got[warm:], reverse=True)
    assert min(got) > 0 and max(got) <= 1.0
    assert steps < 3 or max(got) == 1.0
    assert steps < 3 or got[-1] == pytest.approx(0.1)


def test_cosine_is_halfway_down_in_the_middle() -> None:
    assert learning_rate(50, 101, 2.0, Schedule(warmup=0.0, final=0.0)) == pytest.approx(1.0)


def test_constant_with_decay_is_flat_until_its_last_part_and_then_one_minus_root() -> None:
    got = rates(Schedule(kind="constant-with-decay", warmup=0.0, decay=0.25, final=0.0), 100)
    assert set(got[:75]) == {1.0}
    assert got[75:] == pytest.approx([1 - math.sqrt((i + 1) / 25) for i in range(25)])


def test_without_decay_the_rate_stays() -> None:
    assert set(rates(Schedule(kind="constant-with-decay", warmup=0.0, decay=0.0), 20)) == {1.0}
