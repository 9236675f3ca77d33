"""Compiled kernels are kept for the next process, and where nothing can be kept they work all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sheaf

USE = """
import numpy as np
from sheaf.order.shuffle import _mix, permute
assert sorted(permute(np.arange(9), 9, 1).tolist()) == list(range(9))
_mix(np.uint64(3))
print(sum(_mix.compiled.stats.cache_hits.values()))
"""


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A copy of the package beside which nothing can be cached (also for root, whom permissions don't stop)."""
    package = tmp_path / "installed" / "sheaf"
    shutil.copytree(Path(sheaf.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "order" / "__pycache__").write_text("a file where numba wants a folder")
    return package.parent


def hits(installed: Path, **environment: str) -> int:
    """Kernels that a fresh process found ready-made."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    found = subprocess.run(
        [sys.executable, "-c", USE],
        env={**kept, "PYTHONPATH": str(installed), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return int(found.stdout)


def test_beside_a_read_only_package_kernels_are_kept_in_the_user_s_cache(unwritable: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert hits(unwritable, HOME=str(home)) == 0
    assert hits(unwritable, HOME=str(home)) == 1


def test_numba_cache_dir_is_obeyed(unwritable: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    assert hits(unwritable, HOME="/dev/null", NUMBA_CACHE_DIR=str(cache)) == 0
    assert hits(unwritable, HOME="/dev/null", NUMBA_CACHE_DIR=str(cache)) == 1


def test_with_no_place_to_keep_them_kernels_still_work(unwritable: Path) -> None:
    assert hits(unwritable, HOME="/dev/null") == 0


def test_importing_the_room_loads_no_compiler() -> None:
    code = "import sys, sheaf.order; print('numba' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["False", "False"]


def test_the_loader_works_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import sheaf.order.loader, sheaf.order.trace"
    subprocess.run([sys.executable, "-c", code], check=True)
