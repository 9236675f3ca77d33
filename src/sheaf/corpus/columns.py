"""Columns on disk: arrays as .npy files that are filled piece by piece and read through the page cache.

A number per record is little, but of a billion records it is more than a machine's memory. Space is taken before the
first write: a write to a mapped file on a full disk would kill the process (SIGBUS) and tell nobody why.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CHUNK = 1 << 18  # rows gone through at once, wherever columns are

Array = NDArray[Any]


def chunks(rows: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of the pieces in which so many rows are gone through."""
    return ((start, min(start + CHUNK, rows)) for start in range(0, rows, CHUNK))


def save_array(path: Path, array: Array) -> None:
    """A .npy file. numpy's own `save` tells nobody why a write failed; a full disk must be known as one."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as f:
        np.lib.format.write_array_header_1_0(f, np.lib.format.header_data_from_array_1_0(array))
        if array.size:  # a view of nothing cannot be cast
            f.write(array.data.cast("B"))


def new_array(path: Path, dtype: DTypeLike, shape: int | tuple[int, ...], fill: int = 0) -> Array:
    """A .npy file of this shape, mapped for writing."""
    shape = (shape,) if isinstance(shape, int) else shape
    model = np.broadcast_to(np.zeros((), dtype), shape)
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(model.dtype),
        "fortran_order": False,
        "shape": model.shape,
    }
    with path.open("wb") as f:
        np.lib.format.write_array_header_1_0(f, header)
        if model.nbytes:
            os.posix_fallocate(f.fileno(), 0, f.tell() + model.nbytes)
    mapped = np.lib.format.open_memmap(path, "r+")
    if fill:
        for start, stop in chunks(len(mapped)):
            mapped[start:stop] = fill
    return np.asarray(mapped)  # a memmap's own indexing costs microseconds of Python


def release(*columns: Array) -> None:
    """Give the memory back that holds pages of these mapped columns: the files stay as they are.

    The kernel would take it itself when others need it; but until then it looks like ours, and a limit on a container's
    memory counts it.
    """
    for column in columns:
        holder: Any = column
        while isinstance(holder, np.ndarray):
            holder = holder.base
        if isinstance(holder, mmap.mmap):
            holder.madvise(mmap.MADV_DONTNEED)


class Appended:
    """A column whose length is known at its end: `append` pieces, then `mapped` gives the whole."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._file = path.open("wb")

    def append(self, piece: Array) -> None:
        self._file.write(np.ascontiguousarray(piece, self._dtype).view(np.uint8).data)

    def mapped(self) -> Array:
        """For reading; nothing can be appended any more."""
        self._file.close()
        if self._path.stat().st_size == 0:
            return np.zeros(0, self._dtype)
        return np.asarray(np.memmap(self._path, self._dtype, "r"))
