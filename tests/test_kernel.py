"""Compiled kernels are kept for the next process, and where nothing can be kept they work all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sheaf
from sheaf.formats import fast

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


CONFINED = """
import os
import pyarrow
import sheaf.kernel_code
from sheaf.formats import confine, kernel_rows
from sheaf.kernel import Kernel
confine.confine(2048, os.getppid())
try:
    open(kernel_rows.__file__ + ".new", "x")
except OSError:
    kernel_rows.warm()
    kernels = [kernel for kernel in vars(kernel_rows).values() if isinstance(kernel, Kernel)]
    print(len(kernels) > 5, sum(sum(kernel.compiled.stats.cache_misses.values()) for kernel in kernels))
"""


def test_a_process_that_may_write_nothing_finds_what_others_have_kept() -> None:
    assert fast.prepared()
    shown = subprocess.run([sys.executable, "-c", CONFINED], check=True, capture_output=True, text=True).stdout
    assert shown.split() == ["True", "0"]


def test_code_is_old_when_a_file_that_it_was_made_of_has_changed(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text("from sheaf.kernel import kernel\n\n@kernel\ndef one():\n    return 1\n")
    (tmp_path / "outer.py").write_text(
        "import inner\nfrom sheaf.kernel import kernel_with\n\none = inner.one\n\n"
        "@kernel_with(inner)\ndef two():\n    return 2 * one()\n"
    )

    def run() -> list[str]:
        code = "import outer; print(outer.two(), sum(outer.two.compiled.stats.cache_hits.values()))"
        return subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.split()  # -B: Python itself takes a .pyc for new that is as old to the second, and as long

    assert [run(), run()] == [["2", "0"], ["2", "1"]]
    inner = tmp_path / "inner.py"
    time = inner.stat().st_mtime_ns
    inner.write_text(inner.read_text().replace("1", "3"))
    os.utime(inner, ns=(time, time))
    assert [run(), run()] == [["6", "0"], ["6", "1"]]


def test_code_of_a_file_that_changed_after_it_was_loaded_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from sheaf.kernel import kernel\n\n@kernel\ndef one():\n    return 1\n\n"
        "@kernel\ndef two():\n    return 2 * one()\n"
    )
    late = (
        "import own, pathlib; path = pathlib.Path('own.py'); "
        "path.write_text(path.read_text().replace('1', '3')); print(own.two())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-B", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout
        for code in (late, "import own; print(own.two())")
    ]
    assert said == ["2\n", "6\n"]


def test_code_compiled_with_other_options_is_other_code(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os\nfrom sheaf.kernel import Kernel\n\ndef odd(x):\n    return x != x\n\n"
        "odd = Kernel(odd, fast=os.environ.get('FLAGS', '').split())\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", "import own; print(own.odd(float('nan')))"],
            env={**os.environ, "FLAGS": flags}, cwd=tmp_path, check=True, capture_output=True, text=True,
        ).stdout
        for flags in ("nnan", "")
    ]  # fmt: skip
    assert said == ["False\n", "True\n"]


def test_damaged_machine_code_is_made_again(unwritable: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert hits(unwritable, HOME="/dev/null", NUMBA_CACHE_DIR=cache) == 0
    for file in Path(cache).rglob("*.nbc"):
        file.write_bytes(file.read_bytes()[:100])
    assert hits(unwritable, HOME="/dev/null", NUMBA_CACHE_DIR=cache) == 0
    assert hits(unwritable, HOME="/dev/null", NUMBA_CACHE_DIR=cache) == 1
