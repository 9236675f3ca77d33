"""Memory and cores that control groups leave, also those above a process's own, in both versions of their files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from control_group import memory_group
from sheaf import allowance

MB = 1 << 20
UNLIMITED = 9223372036854771712  # what the first version says


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(allowance, "GROUPS", tmp_path)
    monkeypatch.setattr(allowance, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path


def write(folder: Path, **files: int | str) -> None:
    """Files of a group; their names with _ for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def test_the_strictest_of_all_groups_holds(groups: Path) -> None:
    (groups / "membership").write_text("0::/job.slice/step_0\n")
    write(groups / "job.slice", memory_max=300 * MB, memory_current=200 * MB, cpu_max="250000 100000")
    write(groups / "job.slice", memory_stat=f"anon 1\ninactive_file {50 * MB}")
    write(groups / "job.slice/step_0", memory_max="max", memory_current=100 * MB, cpu_max="max 100000")
    assert allowance.memory() == 300 * MB
    assert allowance.free_memory() == 150 * MB
    assert allowance.cores() == 2


def test_the_first_version_has_a_tree_for_each_controller(groups: Path) -> None:
    (groups / "membership").write_text("4:memory:/slurm/job_7\n2:cpu,cpuacct:/slurm\n0::/\n")
    write(groups / "memory/slurm/job_7", memory_limit_in_bytes=UNLIMITED)
    write(groups / "memory/slurm", memory_limit_in_bytes=400 * MB, memory_usage_in_bytes=500 * MB)
    write(groups / "cpu/slurm", cpu_cfs_quota_us=50000, cpu_cfs_period_us=100000)
    assert allowance.memory() == 400 * MB
    assert allowance.free_memory() == 0
    assert allowance.cores() == 1  # of half a core: there is no run without one


def test_without_groups_the_machine_is_all_there_is(groups: Path) -> None:
    assert allowance.memory() == psutil.virtual_memory().total
    assert allowance.cores() == 16
    (groups / "membership").write_text("4:memory:/a/path/of/the/host\n3:cpu:/\n0::/../outside\n")
    write(groups / "memory", memory_limit_in_bytes=200 * MB)
    write(groups, memory_max="max")
    assert allowance.memory() == 200 * MB


def test_a_real_group_is_seen() -> None:
    with memory_group(256 * MB) as group:
        code = (
            f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
            "from sheaf import allowance\nprint(allowance.memory(), allowance.free_memory())"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    memory, free = map(int, told.split())
    assert memory == 256 * MB and 100 * MB < free < memory
