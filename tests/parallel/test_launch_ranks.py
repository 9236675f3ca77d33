"""Ranks are started, watched and ended by one process, which says who failed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from sheaf.parallel import launch
from sheaf.parallel.launch import Ended, Failed, forker, run_ranks
from sheaf.parallel.pulse import Patience
from sheaf.processes import StopSignals


def test_ranks_that_hang_after_another_one_failed_are_killed_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    assert launch.FAILURE_SECONDS < 10
    monkeypatch.setattr(launch, "FAILURE_SECONDS", 0.2)
    start = time.monotonic()
    with StopSignals(patient=False) as signals, forker("odd_rank", [], 3) as ranks:
        ended = run_ranks(ranks, ["7"], range(3), tmp_path, signals=signals, patience=Patience(60.0))
    assert ended == Ended(failed=Failed(0, 7))
    assert time.monotonic() - start < 60
    assert not [p for p in psutil.Process(os.getpid()).children(recursive=True) if "odd_rank" in p.cmdline()]
    assert not list(tmp_path.iterdir())
