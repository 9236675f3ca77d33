"""Checkpoints on disk: whole or not there, checked on load, and harmless when the disk is full."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_corpus import make_corpus, make_recipe

from sheaf.console import Silent
from sheaf.errors import CorruptStore, EnvironmentProblem, UsageError
from sheaf.files import digest_file
from sheaf.model.pieces import Piece, even_range
from sheaf.train import journal
from sheaf.train.checkpoint import (
    CheckpointWriter,
    list_checkpoints,
    load_model,
    newest_valid,
    open_checkpoint,
    step_of,
)
from sheaf.train.launch import resume, train
from sheaf.train.tensors import sha256_of, write_tensors


def save(writer: CheckpointWriter, step: int, value: float) -> None:
    whole = Piece.whole((3, 4))
    tensors = {"weight.w": (whole, torch.full((3, 4), value)), "exp_avg.w": (whole, torch.zeros(3, 4))}
    writer.save({"step": step}, tensors)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)
def test_what_is_written_is_what_the_library_reads(
    shapes: list[list[int]], dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    tensors = {f"t.{i}": torch.randn(shape).mul(100).to(dtype) for i, shape in enumerate(shapes)}
    digest = write_tensors(path, tensors)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == dtype for name, tensor in tensors.items())
    assert sha256_of(path) == digest


def test_the_newest_are_kept_and_hold_what_was_there_when_they_were_taken(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    weight = torch.zeros(3, 4)
    for step in (1, 2, 3):
        weight.fill_(step)
        writer.save({"step": step}, {"weight.w": (Piece.whole((3, 4)), weight)})
        weight.fill_(-1.0)  # training goes on while the writer works
    writer.wait()
    writer.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000002"]
    newest = newest_valid(tmp_path)
    assert newest is not None and newest.step == 3
    assert newest.read("weight.w", Piece.whole((3, 4))).unique().tolist() == [3.0]


def test_the_best_by_held_out_loss_is_kept_beside_the_newest_and_named_in_the_result(tmp_path: Path) -> None:
    diverges = {"learning_rate": 5.0, "optimizer": "adamw", "schedule": {"kind": "constant-with-decay", "warmup": 0.5}}
    every = {"evaluate_every": 2, "checkpoint_every": 2, "keep": 2, "budget": {"steps": 16}}
    result = train(make_recipe(tmp_path, **diverges, **every), make_corpus(tmp_path), console=Silent())
    run = Path(result["run"])
    losses = {one["step"]: one["loss"] for one in journal.read_evaluations(run)}
    best = min(losses, key=losses.__getitem__)
    assert best < 14  # it went bad
    assert [step_of(path) for path in list_checkpoints(run)] == [16, 14, best]
    assert result["best"] == {"step": best, "validation_loss": losses[best]}


def test_the_best_goes_when_a_better_one_comes_and_is_not_kept_when_nobody_wants_it(tmp_path: Path) -> None:
    for keep_best, expected in ((True, [6, 5, 3]), (False, [6, 5])):
        root = tmp_path / str(keep_best)
        root.mkdir()
        writer = CheckpointWriter(root, keep=2, keep_best=keep_best)
        for step, loss in ((1, 2.0), (2, None), (3, 1.0), (4, float("nan")), (5, 1.5), (6, 1.2)):
            writer.save({"step": step, "validation_loss": loss}, {"weight.w": (Piece.whole((1,)), torch.ones(1))})
        writer.wait()
        writer.close()
        assert [step_of(path) for path in list_checkpoints(root)] == expected


@pytest.mark.parametrize("name", ["model-0000.safetensors", "optimizer-0000.safetensors", "manifest.json", "COMMITTED"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "noise"])
def test_any_damage_to_any_file_is_noticed(tmp_path: Path, name: str, harm: str) -> None:
    writer = CheckpointWriter(tmp_path, keep=3)
    save(writer, 1, 1.0)
    save(writer, 2, 2.0)
    writer.wait()
    writer.close()
    path = tmp_path / "checkpoints" / "step-00000002" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": data, "cut": data[: len(data) // 2], "noise": b"\xff\x80" * 32}[harm])
    with pytest.raises(CorruptStore):
        open_checkpoint(path.parent)
    notes: list[str] = []
    newest = newest_valid(tmp_path, notes.append)
    assert newest is not None and newest.step == 1
    assert notes or (name, harm) == ("COMMITTED", "remove")


def test_what_a_checkpoint_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=3)
    save(writer, 1, 1.0)
    writer.wait()
    writer.close()
    checkpoint = newest_valid(tmp_path)
    assert checkpoint is not None
    with pytest.raises(CorruptStore, match=r"momentum\.w"):  # of another optimiser
        checkpoint.read("momentum.w", Piece.whole((3, 4)))
    with pytest.raises(CorruptStore, match=r"\[4, 4\]"):  # of another model
        checkpoint.read("weight.w", Piece.whole((4, 4)))


@settings(max_examples=50, deadline=None)
@given(data=st.data(), shape=st.tuples(st.integers(1, 7), st.integers(1, 7)), ranks=st.integers(1, 4))
def test_pieces_that_several_ranks_wrote_are_read_back_in_any_other_cut(
    data: st.DataObject, shape: tuple[int, int], ranks: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("run")
    values = torch.arange(float(shape[0] * shape[1])).view(shape)
    dimension = data.draw(st.integers(0, 1))
    writers = [CheckpointWriter(root, keep=2, rank=rank, world=ranks) for rank in range(ranks)]
    for rank, writer in enumerate(writers):
        piece = Piece.whole(shape).cut(dimension, *even_range(shape[dimension], ranks, rank))
        held = values[piece.slices]
        writer.save({"step": 1}, {"weight.w": (piece, held)} if held.numel() else {})
    for writer in writers:
        writer.wait()
        writer.close()
    checkpoint = newest_valid(root)
    assert checkpoint is not None
    piece = Piece.whole(shape)
    for d in (0, 1):
        start = data.draw(st.integers(0, shape[d]))
        piece = piece.cut(d, start, data.draw(st.integers(start, shape[d])))
    assert torch.equal(checkpoint.read("weight.w", piece), values[piece.slices])


def test_a_manifest_that_is_none_is_damage_even_if_its_digest_holds(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=3)
    save(writer, 1, 1.0)
    writer.wait()
    writer.close()
    folder = tmp_path / "checkpoints" / "step-00000001"
    for content in (b"[]", b"{}", b"{"):
        (folder / "manifest.json").write_bytes(content)
        (folder / "COMMITTED").write_text(digest_file(folder / "manifest.json"))
        assert newest_valid(tmp_path) is None


def test_what_is_written_after_damage_is_kept_and_the_damaged_are_set_aside(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=3)
    for step in (4, 8, 12):
        save(writer, step, 1.0)
    writer.close()
    folder = tmp_path / "checkpoints"
    for name in ("step-00000008", "step-00000012"):
        (folder / name / "COMMITTED").write_bytes(b"\xff")

    writer = CheckpointWriter(tmp_path, keep=2)
    writer.go_on_from(newest_valid(tmp_path))
    for step in (5, 6):
        save(writer, step, 2.0)
    writer.close()
    names = ["step-00000005", "step-00000006", ".damaged-step-00000008", ".damaged-step-00000012"]
    assert {path.name for path in folder.iterdir()} == set(names)


def test_the_checkpoint_just_written_is_never_pruned(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in (8, 12, 5):  # as if the later ones had come from elsewhere
        save(writer, step, 1.0)
    writer.close()
    assert "step-00000005" in {path.name for path in list_checkpoints(tmp_path)}


def test_a_full_disk_stops_the_run_cleanly_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The kernel's file-size limit stands in for the full disk: as real, and allowed to an ordinary user."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FillsUp(Silent):
        def note(self, text: str) -> None:
            if text.startswith("step 6/"):
                while not (tmp_path / "runs/test-002/checkpoints/step-00000004").exists():
                    pass  # the save before is still being written
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    corpus, recipe = make_corpus(tmp_path), make_recipe(tmp_path, budget={"steps": 12}, checkpoint_every=4)
    calm = Path(train(recipe, corpus, console=Silent())["run"])
    try:
        with pytest.raises(EnvironmentProblem) as raised:
            train(recipe, corpus, console=FillsUp())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.exit_code == 4
    assert "step-00000008" in raised.value.where
    run = tmp_path / "runs" / "test-002"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]

    resume(run, console=Silent())
    assert [line["loss"] for line in journal.read(run)] == [line["loss"] for line in journal.read(calm)]


def test_a_model_is_loaded_by_step_and_an_unknown_step_names_the_known_ones(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, budget={"steps": 6}, checkpoint_every=2)
    run = Path(train(recipe, make_corpus(tmp_path), console=Silent())["run"])
    newest, info = load_model(run)
    older, _ = load_model(run, 4)
    assert info["step"] == 6
    assert not torch.equal(newest.head_weight, older.head_weight)
    with pytest.raises(UsageError, match="step 5") as raised:
        load_model(run, 5)
    assert "2, 4, 6" in raised.value.fix
