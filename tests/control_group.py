"""A control group with a limit of memory, as a container or systemd makes one, in either version of its files."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def memory_group(most: int) -> Generator[Path]:
    """Its folder; processes join by writing to cgroup.procs there. Skips the test where none can be made."""
    old = Path("/sys/fs/cgroup/memory")
    made = (old if old.is_dir() else old.parent) / f"sheaf-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")).write_text(str(most))
    except OSError as error:
        pytest.skip(f"a control group cannot be made here: {error}")
    try:
        yield made
    finally:
        made.rmdir()
