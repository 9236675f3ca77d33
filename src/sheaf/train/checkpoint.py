"""Checkpoints: everything a run needs to go on as if nothing had happened.

    checkpoints/step-00000100/model.safetensors      fp32 weights, by published parameter name
                              optimizer.safetensors  "<kind>.<parameter name>"
                              manifest.json          step, order, schedule, lengths of the journals, digests of files
                              COMMITTED              digest of the manifest, written last

"step-00000100" means that steps 0 … 99 are in it. The training thread copies the tensors (a pause of a memory copy) and
makes the journal durable; a background thread writes a folder with a temporary name, syncs it, and renames it. One
save is under way at a time: the next waits, which bounds memory to one copy (12 bytes a weight with AdamW). Nothing
here depends on ranks or layouts: any number of ranks can load it. Every digest is checked on load; a checkpoint that
fails is passed over for the one before, and set aside as ".damaged-step-…" when the run goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor

from sheaf.errors import CorruptStore, UsageError
from sheaf.files import digest_file, disk_errors, sync_folder, write_file, write_json
from sheaf.model.adapters import Lora, attach, check_base, load_stored
from sheaf.model.families import Model, config_from_hf, empty_model, load_folder, load_state
from sheaf.train.tensors import read_tensors, write_tensors

FORMAT = 2
MODEL, OPTIMIZER, MANIFEST, COMMITTED = "model.safetensors", "optimizer.safetensors", "manifest.json", "COMMITTED"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose digests have been checked."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    def model(self) -> dict[str, Tensor]:
        return read_tensors(self.path / MODEL, self.manifest["files"][MODEL])

    def optimizer(self) -> dict[str, Tensor]:
        return read_tensors(self.path / OPTIMIZER, self.manifest["files"][OPTIMIZER])


class CheckpointWriter:
    """Writes checkpoints of one run behind the training thread's back, and keeps the newest `keep`."""

    def __init__(self, run: Path, keep: int) -> None:
        self.folder = run / "checkpoints"
        self.keep = keep
        self.last: Path | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            for left in self.folder.glob(".step-*"):  # of a process that was killed while writing
                shutil.rmtree(left, ignore_errors=True)

    def go_on_from(self, checkpoint: Checkpoint | None) -> None:
        """Set aside every newer one, which was passed over: it must neither be taken for a newer state nor kept in
        place of those that are written now."""
        self.last = None if checkpoint is None else checkpoint.path
        with disk_errors(self.folder):
            for path in list_checkpoints(self.folder.parent):
                if checkpoint is None or step_of(path) > checkpoint.step:
                    aside = path.with_name(f".damaged-{path.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)

    def save(self, manifest: dict[str, Any], model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Copy the tensors now, write them later. Raises what went wrong with the save before."""
        self.wait()
        copies = {MODEL: _copied(model), OPTIMIZER: _copied(optimizer)}
        self._pending = self._pool.submit(self._write, manifest, copies)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything has."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the save under way is committed; raise if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.last = pending.result()

    def close(self) -> None:
        """End the thread after the save under way. Says nothing of its outcome: call `wait` for that."""
        self._pool.shutdown(wait=True)

    def _write(self, manifest: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> Path:
        final = self.folder / f"step-{manifest['step']:08d}"
        temporary = self.folder / f".{final.name}"
        with disk_errors(final):
            try:
                temporary.mkdir()
                files = {name: write_tensors(temporary / name, values) for name, values in tensors.items()}
                write_json(temporary / MANIFEST, {"format": FORMAT, **manifest, "files": files})
                write_file(temporary / COMMITTED, digest_file(temporary / MANIFEST).encode() + b"\n")
                if final.exists():  # passed over as corrupt by the resume that now has come here again
                    shutil.rmtree(final)
                temporary.rename(final)
                sync_folder(self.folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for old in list_checkpoints(self.folder.parent)[self.keep :]:
            if old != final:
                remove(old)
        return final


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away; it stops counting as one before its files go."""
    gone = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def list_checkpoints(run: Path) -> list[Path]:
    """The committed checkpoints' folders, newest first, unchecked."""
    found = (path for path in (run / "checkpoints").glob("step-[0-9]*") if (path / COMMITTED).exists())
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The steps that a checkpoint's folder stands for."""
    return int(checkpoint.name.removeprefix("step-"))


def open_checkpoint(path: Path) -> Checkpoint:
    """Raises CorruptStore if a file cannot be read, or differs from what was committed."""
    try:
        expected = (path / COMMITTED).read_bytes().strip()
        if digest_file(path / MANIFEST).encode() != expected:
            raise _corrupt(path / MANIFEST)
        manifest = orjson.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CorruptStore("the checkpoint has a format that this version does not know", where=str(path))
        for name, digest in manifest["files"].items():
            if digest_file(path / name) != digest:
                raise _corrupt(path / name)
    except OSError as error:
        raise _corrupt(Path(error.filename or path)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # JSON, but not ours
        raise _corrupt(path / MANIFEST) from error
    return Checkpoint(path, manifest)


def newest_valid(
    run: Path,
    note: Callable[[str], None] = lambda _: None,
    fits: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> Checkpoint | None:
    """The newest checkpoint whose digests hold; a note for each that is passed over. None if there is none.

    fits: by its manifest, whether it can be meant.
    """
    for path in list_checkpoints(run):
        try:
            found = open_checkpoint(path)
            if fits(found.manifest):
                return found
        except CorruptStore as error:
            note(f"checkpoint {path.name} is damaged ({error.what}: {error.where}); trying the one before")
    return None


def load_model(
    run: Path, step: int | None = None, compute_dtype: torch.dtype = torch.float32
) -> tuple[Model, dict[str, Any]]:
    """The model of a run's newest valid checkpoint, or of the one after `step` steps, on CPU.

    Returns it with {"run", "step", "checkpoint", "tokens"}. Raises UsageError if there is no such checkpoint.
    """
    checkpoint = newest_valid(run) if step is None else find_checkpoint(run, step)
    if checkpoint is None:
        raise UsageError("the run has no checkpoint yet", where=str(run), fix=f"sheaf resume {run}")
    info = {"run": str(run), "step": checkpoint.step, "checkpoint": str(checkpoint.path)}
    return saved_model(checkpoint, compute_dtype), {**info, "tokens": checkpoint.manifest["tokens"]}


def saved_model(checkpoint: Checkpoint, compute_dtype: torch.dtype) -> Model:
    """The model of a checkpoint: fp32 weights that compute in `compute_dtype`, on CPU. Of a run with adapters, these
    beside their base. Raises CorruptStore if that has changed."""
    config, adapters = config_from_hf(checkpoint.manifest["model"]), checkpoint.manifest["adapters"]
    if adapters is None:
        model = empty_model(config, compute_dtype)
        load_state(model, checkpoint.model())
        return model
    lora = Lora.from_json(adapters)
    check_base(lora)
    model = load_folder(Path(lora.base), compute_dtype, config.vocab_size)
    attach(model, lora)
    load_stored(model, checkpoint.model(), str(checkpoint.path))
    return model


def find_checkpoint(run: Path, step: int) -> Checkpoint:
    """The checkpoint after `step` steps. Raises UsageError naming those that there are."""
    path = run / "checkpoints" / f"step-{step:08d}"
    if not (path / COMMITTED).exists():
        have = ", ".join(str(step_of(p)) for p in reversed(list_checkpoints(run)))
        raise UsageError(
            f"the run has no checkpoint of step {step}", where=str(run), fix=f"there are: {have or 'none'}"
        )
    return open_checkpoint(path)


def _corrupt(path: Path) -> CorruptStore:
    return CorruptStore(
        "a file of a checkpoint is missing or has changed", where=str(path), fix="use an earlier checkpoint"
    )


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
