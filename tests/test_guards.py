"""Every guard against hostile input has a test that fails without it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/guards.py"


def test_every_guard_of_the_table_stands_in_the_code_and_its_test_in_the_tests() -> None:
    """Cheap, so that whoever moves a guard learns of it now and not from the next long run."""
    for guard in runpy.run_path(str(SCRIPT))["GUARDS"]:
        assert (ROOT / "src/sheaf" / guard.file).read_text().count(guard.text) == 1, guard.against
        file, _, name = guard.test.partition("::")
        wanted = f"def {name.partition('[')[0]}(" if name else "def test_"
        assert wanted in (ROOT / "tests" / file).read_text(), guard.against


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_guard_can_be_taken_out_unseen() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
