"""The machine's checks: that they pass where the tests run, and fail where something is broken on purpose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sheaf import doctor
from sheaf.console import Silent


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, doctor.Check]:
    return {c.id: c for c in doctor.examine(tmp_path_factory.mktemp("doctor") / "workspace")}


def test_the_machine_of_the_tests_can_do_the_work(checks: dict[str, doctor.Check]) -> None:
    assert [c for c in checks.values() if c.status == "fail"] == []


def test_check_ids_are_those_that_scripts_know(checks: dict[str, doctor.Check]) -> None:
    assert list(checks) == [
        "python.version",
        "python.encoding",
        "platform",
        "memory",
        "files.open",
        "disk.space",
        "disk.atomic",
        "disk.shm",
        "network.loopback",
        "sandbox",
        "torch.version",
        "torch.device",
        "torch.threads",
        "torch.bf16",
        "torch.compile",
        "train.collective",
    ]


def test_two_processes_really_meet(checks: dict[str, doctor.Check]) -> None:
    assert "two processes met" in checks["train.collective"].detail


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    assert doctor._disk_atomic(tmp_path / "not" / "there").status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_compiler_is_a_warning_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check = doctor._compiler()
    assert (check.status, "g++" in check.fix) == ("warn", True)


def test_a_compiler_that_cannot_build_is_told_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "broken-cxx"
    compiler.write_text("#!/bin/sh\necho 'omp.h: no such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    check = doctor._compiler()
    assert check.status == "warn"
    assert "omp.h: no such file" in check.detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    found = {c.id: c for c in doctor.examine(tmp_path)}
    assert found["disk.atomic"].status == "fail"


def test_a_check_that_breaks_is_a_failure_that_quotes_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(folder: Path) -> doctor.Check:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(doctor, "_disk_space", broken)
    found = next(c for c in doctor.examine(tmp_path) if c.id == "disk.space")
    assert (found.status, found.detail) == ("fail", "OSError: the disk is on fire")


def test_the_summary_counts_each_status() -> None:
    made = [doctor.Check("a", "ok", ""), doctor.Check("b", "fail", "x", "do"), doctor.Check("c", "ok", "")]
    data = doctor.summary(made, Silent())
    assert (data["ok"], data["warn"], data["fail"]) == (2, 0, 1)
    assert data["checks"][1] == {"id": "b", "status": "fail", "detail": "x", "fix": "do"}
