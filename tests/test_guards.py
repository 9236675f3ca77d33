"""Every guard against hostile input has a test that fails without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_guard_can_be_taken_out_unseen() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/guards.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
