"""What of the machine this process may use: memory and cores, less where a control group says so.

Containers, `systemd-run -p MemoryMax=…` and Slurm put processes into control groups; each of those that a process is
in, one inside the other, has a say. Their files lie where cgroups(7) says, in its first or second version.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory() -> int:
    """Bytes that this process and all beside it in its groups may have."""
    limits = (_number(folder / limit) for folder, limit, _, _ in _memory_groups())
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def free_memory() -> int:
    """Bytes that may still be taken. What a group holds of files that it has read can go, and counts as free."""
    free = [psutil.virtual_memory().available]
    for folder, limit, used, cached in _memory_groups():
        most, now = _number(folder / limit), _number(folder / used)
        if most is not None and now is not None:
            free.append(max(0, most - now + _statistic(folder / "memory.stat", cached)))
    return min(free)


def cores() -> int:
    """By affinity, and the groups' quotas of time."""
    found = [float(len(os.sched_getaffinity(0)))]
    for folder in _groups(""):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(int(quota) / int(period))  # "max" is no number, and no limit
    for folder in _groups("cpu"):
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us is not None and quota_us > 0 and period_us:
            found.append(quota_us / period_us)
    return max(1, int(min(found)))


def _memory_groups() -> Iterator[tuple[Path, str, str, str]]:
    """(folder, file of the limit, file of what is used, what memory.stat calls files' bytes that can go)."""
    for folder in _groups(""):
        yield folder, "memory.max", "memory.current", "inactive_file"
    for folder in _groups("memory"):
        yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _groups(controller: str) -> Iterator[Path]:
    """The groups of this process, the innermost first. controller: of the first version; "": of the second.

    Inside a container the path may be the host's: then only the outermost folder, which is the container's, exists.
    """
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            outermost = GROUPS / controller
            inner = outermost / path.strip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(outermost))


def _number(file: Path) -> int | None:
    """None where there is none: no such file, or no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _statistic(file: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0
