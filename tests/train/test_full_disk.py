"""A disk that is full, for ranks in processes of their own: a real one, a small tmpfs."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import EnvironmentProblem
from sheaf.train import journal
from sheaf.train.checkpoint import newest_valid
from sheaf.train.launch import resume, train


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class FillsTheDisk(Silent):
    """Leaves no byte free after the step."""

    def __init__(self, folder: Path, step: int) -> None:
        self.ballast, self.step = folder / "ballast", step

    def note(self, text: str) -> None:
        if text.startswith(f"step {self.step}/"):
            with self.ballast.open("wb", buffering=0) as file:
                for size in (2**16, 1):
                    try:
                        while file.write(b"\0" * size):
                            pass
                    except OSError:
                        pass


def test_a_full_disk_ends_all_ranks_cleanly_without_restarts_and_the_checkpoint_before_is_whole(
    small_disk: Path,
) -> None:
    recipe = make_recipe(small_disk, budget={"steps": 300}, checkpoint_every=25, keep=2)
    corpus = make_corpus(small_disk)
    console = FillsTheDisk(small_disk, 60)
    with pytest.raises(EnvironmentProblem, match="no space left on the disk") as raised:
        train(recipe, corpus, nproc=2, console=console)
    assert raised.value.exit_code == 4 and str(small_disk) in raised.value.where
    run = small_disk / "runs" / "test-001"
    checkpoint = newest_valid(run)
    assert checkpoint is not None and checkpoint.step >= 50
    assert not (run / "restarts.jsonl").exists()  # the disk would only be full again
    assert not list(run.glob("checkpoints/.step-*"))

    with pytest.raises(EnvironmentProblem, match="no space left"):  # still full: said again, and nothing is lost
        resume(run, nproc=1, console=Silent())
    assert newest_valid(run) == checkpoint

    console.ballast.unlink()
    assert resume(run, nproc=1, console=Silent())["steps"] == 300
    assert [line["step"] for line in journal.read(run)] == list(range(300))
