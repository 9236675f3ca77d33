"""Checkpoints: everything a run needs to go on as if nothing had happened, written by all its ranks together.

    checkpoints/step-00000100/model-0000.safetensors      fp32 weights, as "weight.<parameter>", of the rank with that
                                                          number; of a run with adapters, what lies not in their base
                              optimizer-0000.safetensors  its optimiser state, as "<kind>.<parameter>", and
                                                          what lossy sums of gradients keep (`kept.py`)
                              part-0000.json              which piece of which parameter each tensor is; digests
                              manifest.json               step, order, schedule, lengths of the journals, all parts
                              COMMITTED                   digest of the manifest, written last

"step-00000100" means that steps 0 … 99 are in it. Every rank writes the pieces that it is the first to hold. Its
training thread copies the tensors (a pause of a memory copy); a background thread writes them into a folder with a
temporary name, synced, and its part's description last. Rank 0's thread waits for all parts, writes the manifest, and
renames the folder; no collective is needed, only a folder that all ranks see. One save is under way at a time: the next
waits, which bounds memory to one copy (12 bytes a weight with AdamW).

Nothing in it depends on a layout but how it is cut: a reader asks for any piece of a parameter and gets it from the
files that overlap it, so a run goes on under another layout with the same bits. Digests are checked on load; a
checkpoint that fails is passed over for the one before, and set aside as ".damaged-step-…" when the run goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import safe_open
from torch import Tensor

from sheaf.errors import CorruptStore, EnvironmentProblem, UsageError
from sheaf.files import digest_file, disk_errors, sync_folder, write_file, write_json
from sheaf.model.adapters import Lora, built, check_base
from sheaf.model.families import AnyConfig, Model, config_from_hf, fill, folder_values
from sheaf.model.pieces import Box, Piece, Values
from sheaf.train.keep import MANIFEST, outdated
from sheaf.train.tensors import DTYPES, sha256_of, write_tensors

FORMAT = 3
COMMITTED = "COMMITTED"
WEIGHT = "weight"
OTHERS_SECONDS = 600.0  # the other ranks copy at the same moment, and write as much
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose digests have been checked."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def config(self) -> AnyConfig:
        return config_from_hf(self.manifest["model"])

    @property
    def lora(self) -> Lora | None:
        """The adapters that the run trains beside its base."""
        said = self.manifest["adapters"]
        return None if said is None else Lora.from_json(said)

    def values(self, *, check: bool = True) -> Values:
        """Any piece of the model's parameters: of a run with adapters, what they stand beside is read from their base.

        check: the base's digest. Raises CorruptStore if that has changed.
        """
        lora, base = self.lora, None
        if lora is not None:
            if check:
                check_base(lora)
            base = folder_values(Path(lora.base), self.config.vocab_size)[1]

        def value(name: str, piece: Piece) -> Tensor:
            key = f"{WEIGHT}.{name}"
            return self.read(key, piece) if base is None or key in self.manifest["tensors"] else base(name, piece)

        return value

    def read(self, key: str, piece: Piece) -> Tensor:
        """A piece of a tensor, "<kind>.<parameter>", from the files that hold some of it.

        Raises CorruptStore if there is no such tensor, or not all of the piece.
        """
        record = self.manifest["tensors"].get(key)
        if record is None or tuple(record["shape"]) != piece.shape:
            have = "no such tensor" if record is None else f"one of shape {record['shape']}"
            raise CorruptStore(
                f"the checkpoint does not fit the model: it should have {key} of shape {list(piece.shape)}",
                where=str(self.path),
                why=f"it has {have}",
                fix="resume with the recipe that the run was started with",
            )
        result = torch.empty(piece.size, dtype=next(t for t, name in DTYPES.items() if name == record["dtype"]))
        filled = 0
        for where, part in self.parts(key, piece):
            result[where] = part
            filled += part.numel()
        if filled != result.numel():
            raise _corrupt(self.path / MANIFEST)
        return result

    def parts(self, key: str, piece: Piece) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """What the files have of a piece of a tensor, and where in the piece it belongs."""
        for file, boxes in self.manifest["tensors"][key]["pieces"]:
            box: Box = tuple((start, end) for start, end in boxes)
            both = piece.overlap(box)
            if both is not None:
                with safe_open(self.path / file, framework="pt") as stored:
                    part = stored.get_slice(key)[Piece(piece.shape, box).inside(both)]
                yield piece.inside(both), part


class CheckpointWriter:
    """Writes one rank's part of a run's checkpoints behind the training thread's back; rank 0's commits them and keeps
    the newest `keep`, and perhaps the best one."""

    def __init__(self, run: Path, keep: int, rank: int = 0, world: int = 1, *, keep_best: bool = False) -> None:
        """keep_best: see `keep.py`."""
        self.folder, self.keep_best = run / "checkpoints", keep_best
        self.keep, self.rank, self.world = keep, rank, world
        self.last: Path | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        if rank == 0:
            with disk_errors(self.folder):
                self.folder.mkdir(exist_ok=True)
                for left in self.folder.glob(".step-*"):  # of processes that were killed while writing
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

    def save(self, manifest: dict[str, Any], tensors: Mapping[str, tuple[Piece, Tensor]]) -> None:
        """Copy the tensors now, write them later. manifest: what rank 0 says; its "step" counts on every rank. tensors:
        of this rank alone, by "<kind>.<parameter>". Raises what went wrong with the save before."""
        self.wait()
        copies = {name: (piece, _copied(tensor)) for name, (piece, tensor) in tensors.items()}
        self._pending = self._pool.submit(self._write, manifest, copies)

    def check(self) -> None:
        """Raise what went wrong in the background, if anything has."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the save under way is done, on rank 0 committed; raise if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.last = pending.result()

    def close(self) -> None:
        """End the thread after the save under way. Says nothing of its outcome: call `wait` for that."""
        self._pool.shutdown(wait=True)

    def _write(self, manifest: dict[str, Any], tensors: dict[str, tuple[Piece, Tensor]]) -> Path:
        final = self.folder / f"step-{manifest['step']:08d}"
        temporary = self.folder / f".{final.name}"
        with disk_errors(final):
            try:
                temporary.mkdir(exist_ok=True)
                self._write_part(temporary, tensors)
                if self.rank == 0:
                    self._commit(temporary, final, manifest)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return final

    def _write_part(self, folder: Path, tensors: dict[str, tuple[Piece, Tensor]]) -> None:
        """This rank's tensors, then their description: once it is there, all of the part is."""
        of = {f"model-{self.rank:04d}": True, f"optimizer-{self.rank:04d}": False}
        files: dict[str, str] = {}
        for stem, is_model in of.items():
            name = f"{stem}.safetensors"
            some = {k: t for k, (_, t) in tensors.items() if k.startswith(f"{WEIGHT}.") == is_model}
            if some:
                files[name] = write_tensors(folder / name, some)
        pieces = {
            key: {
                "file": next(
                    f for f in files if f.startswith("model" if key.startswith(f"{WEIGHT}.") else "optimizer")
                ),
                "shape": piece.shape,
                "box": piece.box,
                "dtype": DTYPES[tensor.dtype],
            }
            for key, (piece, tensor) in tensors.items()
        }
        write_json(folder / _part(self.rank), {"files": files, "pieces": pieces})

    def _commit(self, temporary: Path, final: Path, manifest: dict[str, Any]) -> None:
        parts = [_await(temporary / _part(rank)) for rank in range(self.world)]
        tensors: dict[str, dict[str, Any]] = {}
        for part in parts:
            for key, piece in part["pieces"].items():
                record = tensors.setdefault(key, {"shape": piece["shape"], "dtype": piece["dtype"], "pieces": []})
                record["pieces"].append([piece["file"], piece["box"]])
        files = {name: digest for part in parts for name, digest in part["files"].items()}
        write_json(temporary / MANIFEST, {"format": FORMAT, **manifest, "files": files, "tensors": tensors})
        write_file(temporary / COMMITTED, digest_file(temporary / MANIFEST).encode() + b"\n")
        if final.exists():  # passed over as corrupt by the resume that now has come here again
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(self.folder)
        for old in outdated(list_checkpoints(self.folder.parent), self.keep, best=self.keep_best):
            if old != final:
                remove(old)


def _part(rank: int) -> str:
    return f"part-{rank:04d}.json"


def _await(path: Path) -> dict[str, Any]:
    """Another rank's part, when it is written."""
    deadline = time.monotonic() + OTHERS_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                "a rank has not written its part of a checkpoint",
                where=str(path),
                why=f"nothing came for {OTHERS_SECONDS:.0f} s",
                fix="all ranks must see the run's folder; `sheaf resume` goes on from the checkpoint before",
            )
        time.sleep(POLL_SECONDS)
    return orjson.loads(path.read_bytes())


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away; it stops counting as one before its files go."""
    gone = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def list_checkpoints(run: Path) -> list[Path]:
    """The committed checkpoints' folders, newest first, unchecked."""
    found = (path for path in (run / "checkpoints").glob("step-[0-9]*") if (path / COMMITTED).exists())
    return sorted(found, key=step_of, reverse=True)


def newest_step(run: Path) -> int:
    """That of the newest checkpoint, valid or not; 0 without one."""
    return next(map(step_of, list_checkpoints(run)), 0)


def step_of(checkpoint: Path) -> int:
    """The steps that a checkpoint's folder stands for."""
    return int(checkpoint.name.removeprefix("step-"))


def open_checkpoint(path: Path, *, files: bool = True) -> Checkpoint:
    """Raises CorruptStore if a file cannot be read, or differs from what was committed. files: False for ranks that
    read some of it only, when another one has checked all."""
    try:
        expected = (path / COMMITTED).read_bytes().strip()
        if digest_file(path / MANIFEST).encode() != expected:
            raise _corrupt(path / MANIFEST)
        manifest = orjson.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CorruptStore("the checkpoint has a format that this version does not know", where=str(path))
        for name, digest in manifest["files"].items() if files else ():
            if sha256_of(path / name) != digest:
                raise _corrupt(path / name)
    except OSError as error:
        raise _corrupt(Path(error.filename or path)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # JSON, but not ours
        raise _corrupt(path / MANIFEST) from error
    return Checkpoint(path, manifest)


def newest_valid(
    run: Path,
    note: Callable[[str], None] = lambda _: None,
    fits: Callable[[Mapping[str, Any]], bool] = lambda _: True,
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
    """The model of a run's newest valid checkpoint, or of the one after `step` steps, whole and on CPU.

    Returns it with {"run", "step", "checkpoint", "tokens"}. Raises UsageError if there is no such checkpoint.
    """
    checkpoint, info = checkpoint_of(run, step)
    model = built(checkpoint.config, compute_dtype, checkpoint.lora)
    fill(model, checkpoint.values())
    return model, info


def checkpoint_of(run: Path, step: int | None = None) -> tuple[Checkpoint, dict[str, Any]]:
    """As `load_model`, but read when asked for."""
    checkpoint = newest_valid(run) if step is None else find_checkpoint(run, step)
    if checkpoint is None:
        raise UsageError("the run has no checkpoint yet", where=str(run), fix=f"sheaf resume {run}")
    info = {"run": str(run), "step": checkpoint.step, "checkpoint": str(checkpoint.path)}
    return checkpoint, {**info, "tokens": checkpoint.manifest["tokens"]}


def find_checkpoint(run: Path, step: int, *, files: bool = True) -> Checkpoint:
    """The checkpoint after `step` steps; files as in `open_checkpoint`. Raises UsageError naming those there are."""
    path = run / "checkpoints" / f"step-{step:08d}"
    if not (path / COMMITTED).exists():
        have = ", ".join(str(step_of(p)) for p in reversed(list_checkpoints(run)))
        raise UsageError(
            f"the run has no checkpoint of step {step}", where=str(run), fix=f"there are: {have or 'none'}"
        )
    return open_checkpoint(path, files=files)


def _corrupt(path: Path) -> CorruptStore:
    return CorruptStore(
        "a file of a checkpoint is missing or has changed", where=str(path), fix="use an earlier checkpoint"
    )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
