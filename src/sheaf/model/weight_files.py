"""The safetensors of a checkpoint folder. One that holds only pickled weights is refused: they are never opened."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import orjson
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sheaf.errors import UsageError


def weight_files(folder: Path) -> list[Path]:
    """Raises UsageError if there are none, or not all."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        return [_inside(folder, name) for name in _index_names(index)]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UsageError(
            "this checkpoint is stored as pickle, which is never opened",
            where=str(folder / pickles[0]),
            why="a pickle can run any code when it is read",
            fix="convert it to safetensors where you trust it: model.save_pretrained(folder) in transformers",
        )
    raise UsageError("this folder holds no weights", where=str(folder), why="there is no model.safetensors in it")


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """One tensor after another, memory-mapped. Raises UsageError for a file that is missing or broken."""
    for path in files:
        with opened(path) as stored:
            for name in stored.keys():  # noqa: SIM118  (not a dict: it cannot be iterated itself)
                yield name, stored.get_tensor(name)


@contextlib.contextmanager
def opened(path: Path) -> Generator[Any]:
    """A safetensors file, memory-mapped. Raises UsageError if it is missing or broken."""
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, FileNotFoundError) as error:
        raise UsageError("a weight file is broken", where=str(path), why=str(error)) from error


def _index_names(index: Path) -> list[str]:
    try:
        content: Any = orjson.loads(index.read_bytes())
        return sorted(set(cast(dict[str, str], content["weight_map"]).values()))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError("the index of a sharded checkpoint is broken", where=str(index), why=str(error)) from error


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise UsageError("a shard that the index names is not there", where=str(path), fix="fetch the whole checkpoint")
    return path
