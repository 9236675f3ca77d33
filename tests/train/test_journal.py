"""The journal: one step is found without reading the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.train import journal


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 60), max_size=40), torn=st.booleans())
def test_every_step_is_found_whatever_the_lengths_of_the_lines(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], torn: bool
) -> None:
    run = tmp_path_factory.mktemp("run")
    lines = [{"step": step, "ranks": 1, "filler": "x" * n} for step, n in enumerate(lengths)]
    data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    (run / journal.STEPS).write_bytes(data + (b'{"step": 4' if torn else b""))  # a line is being written
    assert [journal.read_step(run, step) for step in range(len(lines))] == lines
    assert journal.read_step(run, len(lines)) is None and journal.read_step(run, -1) is None


def test_of_very_many_steps_any_one_costs_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 100_000
    with (tmp_path / journal.STEPS).open("wb") as file:
        file.writelines(b'{"step":%d,"ranks":2}\n' % step for step in range(steps))
    read: list[Any] = []
    loads = orjson.loads
    monkeypatch.setattr(journal, "orjson", SimpleNamespace(loads=lambda data: read.append(data) or loads(data)))
    for step in (0, steps // 3, steps - 1):
        read.clear()
        line = journal.read_step(tmp_path, step)
        assert line is not None and line["step"] == step
        assert len(read) < 30
