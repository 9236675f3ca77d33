"""Copy the tokens of some samples out of the memory-mapped token files: one pass, straight into the batch's arrays.

The kernel reads all files through their base addresses, so that a batch is one call however many files there are.
Every run is checked against its file's size first: a damaged index is an error, never a wrong token or a crash. Cost:
it writes 28 bytes a token and reads two to five, scattered by document; bench/loader.py prints the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sheaf.errors import CorruptStore
from sheaf.kernel import kernel
from sheaf.order.losses import as_bytes
from sheaf.order.order import Order

PADDING_TOKEN, PADDING_LABEL, PADDING_DOCUMENT = 0, -100, -1

_carray: Any = numba.carray  # typed wrongly for addresses in numba's stubs

Arrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


class Gatherer:
    """The token files and columns that gathering needs, opened once.

    token_files: flat, uint16 or uint32, all alike, by number of shard.
    """

    def __init__(self, order: Order, token_files: Sequence[NDArray[Any]]) -> None:
        kinds = {f.dtype for f in token_files}
        if len(kinds) > 1 or not kinds <= {np.dtype(np.uint16), np.dtype(np.uint32)}:
            raise CorruptStore(f"token files are uint16 or uint32, all alike, not {sorted(map(str, kinds))}")
        if any(f.ndim != 1 or not f.flags.c_contiguous for f in token_files):
            raise CorruptStore("token files are flat arrays")
        self._order = order
        self._files = [np.asarray(f) for f in token_files]  # kept alive: the kernel holds only their addresses
        self._address = np.array([f.ctypes.data for f in self._files], np.uint64)
        self._size = np.array([len(f) for f in self._files], np.int64)
        self._losses = [as_bytes(np.zeros(0, np.uint8) if x is None else x) for x in order.losses]
        for number, loss in enumerate(self._losses):
            if len(loss) not in (0, self._size[number]) or loss.dtype != np.uint8 or not loss.flags.c_contiguous:
                raise CorruptStore(
                    "what is predicted does not fit its token file",
                    where=f"token file {number}",
                    why=f"{len(loss)} of {self._size[number]} tokens",
                    fix="prepare again",
                )
        self._loss_address = np.zeros(len(self._files), np.uint64)  # 0: everything is predicted
        for number, loss in enumerate(self._losses):
            self._loss_address[number] = loss.ctypes.data if len(loss) else 0
        self._like = np.empty(0, next(iter(kinds), np.dtype(np.uint16)))
        pack, documents = order.pack, order.documents
        self._columns = tuple(
            map(
                _read_only,
                (
                    pack.sample_first_run,
                    pack.run_document,
                    pack.run_start,
                    pack.run_length,
                    documents.shard,
                    documents.offset,
                ),
            )
        )

    def gather(self, rows: NDArray[np.int64]) -> Arrays:
        """input_ids, labels, position_ids (int64) and document_ids (int32), each (rows, sequence length)."""
        shape = (len(rows), self._order.sequence_length)
        out = (
            np.empty(shape, np.int64),
            np.empty(shape, np.int64),
            np.empty(shape, np.int64),
            np.empty(shape, np.int32),
        )
        bad = _gather(rows, *self._columns, self._address, self._size, self._loss_address, self._like, *out)
        if bad >= 0:
            document = int(self._order.pack.run_document[bad])
            raise CorruptStore(
                "the index of a document points outside its token file",
                where=f"document {document}, token file {int(self._order.documents.shard[document])}",
                why="the token file is shorter than when the corpus was made, or the index is damaged",
                fix="prepare again",
            )
        return out


def _read_only(x: NDArray[Any]) -> NDArray[Any]:
    # Memory-mapped columns are read-only, arrays are not: numba would compile the kernel once for each combination.
    view = np.asarray(x).view()
    view.flags.writeable = False
    return view


def padded(arrays: Arrays, rows: int) -> Arrays:
    """The same with empty samples added at the end, up to `rows`."""
    n, length = arrays[0].shape
    if n == rows:
        return arrays
    shape = (rows - n, length)
    empty = (
        np.full(shape, PADDING_TOKEN, np.int64),
        np.full(shape, PADDING_LABEL, np.int64),
        np.broadcast_to(np.arange(length), shape),
        np.full(shape, PADDING_DOCUMENT, np.int32),
    )
    a, b, c, d = arrays
    e, f, g, h = empty
    return np.concatenate((a, e)), np.concatenate((b, f)), np.concatenate((c, g)), np.concatenate((d, h))


def _to_pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(address), generate


_pointer: Any = intrinsic(_to_pointer)  # (address) → void pointer, inside kernels


@kernel
def _gather(
    rows: NDArray[np.int64],
    sample_first_run: NDArray[np.int64],
    run_document: NDArray[np.int64],
    run_start: NDArray[np.int64],
    run_length: NDArray[np.int32],
    document_file: NDArray[np.int32],
    document_offset: NDArray[np.int64],
    file_address: NDArray[np.uint64],
    file_size: NDArray[np.int64],
    loss_address: NDArray[np.uint64],
    like: NDArray[Any],
    input_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    document_ids: NDArray[np.int32],
) -> int:
    """Fill the four arrays; returns -1, or the run that lies outside its file."""
    for i in range(len(rows)):
        at = 0
        first, last = sample_first_run[rows[i]], sample_first_run[rows[i] + 1]
        for run in range(first, last):
            file = document_file[run_document[run]]
            begin = document_offset[run_document[run]] + run_start[run]
            length = np.int64(run_length[run])
            if file < 0 or file >= len(file_size) or begin < 0 or begin + length >= file_size[file]:
                return run
            # Loops over slices that begin at 0: numba then needs no test for negative indices, and LLVM vectorises.
            tokens = _carray(_pointer(file_address[file]), (file_size[file],), like.dtype)[begin : begin + length + 1]
            inputs, following = input_ids[i, at : at + length], labels[i, at : at + length]
            positions, numbers = position_ids[i, at : at + length], document_ids[i, at : at + length]
            for j in range(length):
                inputs[j] = tokens[j]
            for j in range(length):
                following[j] = tokens[j + 1]
            if loss_address[file] != 0:
                predicted = _carray(_pointer(loss_address[file]), (file_size[file],), np.uint8)
                flags = predicted[begin + 1 : begin + length + 1]
                for j in range(length):
                    if flags[j] == 0:
                        following[j] = PADDING_LABEL
            for j in range(length):
                positions[j] = j
            for j in range(length):
                numbers[j] = run - first
            at += length
        input_ids[i, at:] = PADDING_TOKEN
        labels[i, at:] = PADDING_LABEL
        position_ids[i, at:] = np.arange(input_ids.shape[1] - at)
        document_ids[i, at:] = PADDING_DOCUMENT
    return -1
