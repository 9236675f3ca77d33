"""The kept records of a corpus as training documents: five memory-mapped columns sorted by (source, id).

This is all that the order needs to know. 48 bytes a document; opening costs no reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("id", "source", "shard", "offset", "length")


@dataclass(frozen=True)
class Documents:
    """id: uint8 (n, 16). source: int32 (n,), index into the corpus' source names; sorted by it, then by id.
    shard: int32 (n,), index of the token file. offset: int64 (n,), first token in that file.
    length: int64 (n,), tokens, the last one is the end-of-text token; always at least 2.
    """

    id: NDArray[np.uint8]
    source: NDArray[np.int32]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.length)

    @staticmethod
    def open(folder: Path) -> Documents:
        return Documents(*(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in COLUMNS))

    def save(self, folder: Path) -> None:
        for name in COLUMNS:
            save_array(folder / f"{name}.npy", getattr(self, name))


def save_array(path: Path, array: NDArray[Any]) -> None:
    """A .npy file. numpy's own `save` tells nobody why a write failed; a full disk must be known as one."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as f:
        np.lib.format.write_array_header_1_0(f, np.lib.format.header_data_from_array_1_0(array))
        if array.size:  # a view of nothing cannot be cast
            f.write(array.data.cast("B"))
