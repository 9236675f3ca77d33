"""A digest for every 64 KiB of a file, so that a reader checks what it reads and not the whole file first.

Beside FILE lies FILE.blocks: little-endian uint64, the file's size, then XXH3-64 of each block. The table's own digest
stands in the folder's DONE, as the whole file's does. What it is against is damage: disks, copies, caches. Against
somebody who may write in the workspace no digest that lies there helps. A block that was damaged at random passes once
in 2^64. (XXH3: Collet's xxHash.)

Why 64 KiB: a shuffled batch takes a few KB from each of many places, and a check costs a whole block at each of them
when it is first touched; smaller blocks cost less there, more in the table, which is now 1/8192 of the file. XXH3 reads
some 11 GB/s on one core, so a corpus is checked in less time than a disk needs to give it; hashlib's fastest, SHA-256
in hardware, reads 1.3. bench/loader.py prints what checking costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sheaf.errors import CorruptStore
from sheaf.files import checked

BLOCK_BYTES = 1 << 16
SUFFIX = ".blocks"


@dataclass(frozen=True, eq=False)
class Table:
    """What a file should hold. size: bytes. digests: uint64 (blocks,)."""

    size: int
    digests: NDArray[np.uint64]

    @staticmethod
    def of(path: Path) -> Table:
        """The table of the file at this path. Raises CorruptStore if it is missing, or not what was written."""
        numbers = np.frombuffer(checked(table_path(path)).read_bytes(), "<u8")
        table = Table(int(numbers[0]), numbers[1:])
        if len(table.digests) != blocks_of(table.size):
            raise CorruptStore(
                "a table of digests does not fit its size",
                where=str(table_path(path)),
                why=f"{len(table.digests)} digests for {table.size} bytes",
                fix="run `sheaf prepare`: it makes the folder again",
            )
        return table

    def span(self, block: int) -> tuple[int, int]:
        """Bytes [from, to) of a block."""
        return block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, self.size)

    def holds(self, block: int, data: Any) -> bool:
        """Whether these bytes are the block's."""
        return xxhash.xxh3_64_intdigest(data) == int(self.digests[block])


def blocks_of(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def table_path(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def write_table(path: Path) -> None:
    """The table of a file that has just been written, beside it."""
    numbers = [path.stat().st_size]
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            numbers.append(xxhash.xxh3_64_intdigest(block))
    table_path(path).write_bytes(np.array(numbers, "<u8").tobytes())
