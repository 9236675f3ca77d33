"""Where documents begin and end in some samples, in each of the forms that attention takes.

All follow from the lengths of the samples' runs, and each is written when it is first asked for: flash-attention's
functions want offsets, 4 bytes a document; a mask wants numbers, and rotary embeddings positions: 12 bytes a token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheaf.kernel import kernel, load_numba
from sheaf.order.memory import Memory

load_numba()

PADDING_DOCUMENT = -1
NO_ROW = -1  # a sample of padding alone


class Bounds:
    """rows: int64 (n,), of the pack, or NO_ROW. columns: the pack's sample_first_run and run_length. width: positions
    of a sample; longer ones are cut. memory: for who asks for numbers, in one thread."""

    def __init__(
        self, rows: NDArray[np.int64], columns: tuple[NDArray[Any], NDArray[Any]], width: int, memory: Memory
    ) -> None:
        self._rows, self._columns, self._width, self._memory = rows, columns, width, memory
        # No cached_property: Python 3.11's takes a lock each time, as long as the rest of such an object's life.
        self._numbers: tuple[NDArray[np.int64], NDArray[np.int32]] | None = None
        self._cu_seqlens: NDArray[np.int32] | None = None

    def some(self, which: Any, rows: int = 0, width: int | None = None) -> Bounds:
        """Of these samples, cut to a width, with empty ones behind them if they are fewer than `rows`."""
        chosen = self._rows[which]
        empty = np.full(max(0, rows - len(chosen)), NO_ROW, np.int64)
        all_rows = np.append(chosen, empty) if len(empty) else chosen
        return Bounds(all_rows, self._columns, self._width if width is None else width, self._memory)

    def replace(self, i: int, row: int) -> None:
        """Another sample stands at i, before anything was asked for."""
        self._rows = self._rows.copy()
        self._rows[i] = row

    @property
    def numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """position_ids and document_ids, (n, width)."""
        if self._numbers is None:
            self._numbers = self._numbered()
        return self._numbers

    @property
    def cu_seqlens(self) -> NDArray[np.int32]:
        if self._cu_seqlens is None:
            self._cu_seqlens = _offsets(self._rows, *self._columns, self._width)
        return self._cu_seqlens

    def _numbered(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        shape = len(self._rows), self._width
        size = shape[0] * shape[1]
        memory = self._memory.take(3 * size)
        position_ids, document_ids = memory[: 2 * size].view(np.int64).reshape(shape), memory[2 * size :].reshape(shape)
        _number(self._rows, *self._columns, position_ids, document_ids)
        return position_ids, document_ids


@kernel
def _number(
    rows: NDArray[np.int64],
    sample_first_run: NDArray[np.int64],
    run_length: NDArray[np.int32],
    position_ids: NDArray[np.int64],
    document_ids: NDArray[np.int32],
) -> None:
    """Fill the two arrays."""
    width = position_ids.shape[1]
    for i in range(len(rows)):
        place = 0
        if rows[i] >= 0:
            first = sample_first_run[rows[i]]
            for run in range(first, sample_first_run[rows[i] + 1]):
                length = min(np.int64(run_length[run]), width - place)
                # Slices that begin at 0: numba then needs no test for negative indices, and LLVM vectorises.
                positions, numbers = position_ids[i, place : place + length], document_ids[i, place : place + length]
                for j in range(len(positions)):
                    positions[j] = j
                numbers[:] = run - first
                place += length
        rest = position_ids[i, place:]
        for j in range(len(rest)):
            rest[j] = j
        document_ids[i, place:] = PADDING_DOCUMENT


@kernel
def _offsets(
    rows: NDArray[np.int64], sample_first_run: NDArray[np.int64], run_length: NDArray[np.int32], width: int
) -> NDArray[np.int32]:
    """Where runs begin in the rows laid end to end, and the end; what is left behind a row's last run is a run too."""
    most = 1
    for row in rows:
        most += 1 + (sample_first_run[row + 1] - sample_first_run[row] if row >= 0 else 0)
    offsets, count = np.empty(most, np.int32), 0
    for i in range(len(rows)):
        place = 0
        if rows[i] >= 0:
            for run in range(sample_first_run[rows[i]], sample_first_run[rows[i] + 1]):
                if place < width:
                    offsets[count] = i * width + place
                    count += 1
                place += run_length[run]
        if place < width:
            offsets[count] = i * width + place
            count += 1
    offsets[count] = len(rows) * width
    return offsets[: count + 1]
