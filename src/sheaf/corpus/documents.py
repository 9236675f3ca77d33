"""The kept records of a corpus as training documents: five memory-mapped columns sorted by (source, id).

This is all that the order needs to know. 48 bytes a document; opening costs no reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

DTYPES: dict[str, DTypeLike] = {
    "id": np.uint8,
    "source": np.int32,
    "shard": np.int32,
    "offset": np.int64,
    "length": np.int64,
}


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
        return Documents(*(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in DTYPES))
