"""The room by itself: no compiler and no torch until they are needed."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_room_loads_no_compiler() -> None:
    code = "import sys, sheaf.order; print('numba' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["False", "False"]


def test_the_loader_works_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import sheaf.order.loader, sheaf.order.trace"
    subprocess.run([sys.executable, "-c", code], check=True)
