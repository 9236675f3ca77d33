"""Copy the tokens of some samples out of the memory-mapped token files: one pass, straight into the batch's arrays.

The kernel reads all files through their base addresses, so that a batch is one call however many files there are.
Every run is checked against its file's size first: a damaged index is an error, never a wrong token or a crash. Cost:
it writes 28 bytes a token and reads two to five, scattered by document; bench/loader.py prints the rate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sheaf.corpus.blocks import BLOCK_BYTES
from sheaf.corpus.tokens import TRIES, Damage, TokenFile, contested
from sheaf.errors import CorruptStore
from sheaf.kernel import kernel
from sheaf.order.losses import Loss
from sheaf.order.order import Order

PADDING_TOKEN, PADDING_LABEL, PADDING_DOCUMENT = 0, -100, -1

_carray: Any = numba.carray  # typed wrongly for addresses in numba's stubs

MOST = 4096  # blocks looked at together

Tokens = NDArray[Any] | TokenFile
Arrays = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]


class Gatherer:
    """The token files and columns that gathering needs, opened once.

    token_files: flat, uint16 or uint32, all alike, by number of shard; those of a corpus, whose blocks are checked
    before their first use, or arrays, which are believed.
    """

    def __init__(self, order: Order, token_files: Sequence[Tokens]) -> None:
        kinds = {f.dtype for f in token_files}
        if len(kinds) > 1 or not kinds <= {np.dtype(np.uint16), np.dtype(np.uint32)}:
            raise CorruptStore(f"token files are uint16 or uint32, all alike, not {sorted(map(str, kinds))}")
        if any(isinstance(f, np.ndarray) and (f.ndim != 1 or not f.flags.c_contiguous) for f in token_files):
            raise CorruptStore("token files are flat arrays")
        self._order = order
        self._size = np.array([len(f) for f in token_files], np.int64)
        flags = [x if x is None or isinstance(x, TokenFile) else np.ascontiguousarray(x) for x in order.losses]
        losses: list[Loss] = [*flags, *[None] * (len(token_files) - len(flags))]
        for number, loss in enumerate(losses):
            if loss is not None and (len(loss) != self._size[number] or loss.dtype != np.uint8):
                raise CorruptStore(
                    "what is predicted does not fit its token file",
                    where=f"token file {number}",
                    why=f"{len(loss)} of {self._size[number]} tokens",
                    fix="prepare again",
                )
        self._flat: list[Tokens | Loss] = [*token_files, *losses]  # kept alive: the kernels hold only addresses
        self._data = np.array([_address(_bytes(f)) for f in self._flat], np.uint64)
        self._like = np.empty(0, next(iter(kinds), np.dtype(np.uint16)))
        self._files = {number: f for number, f in enumerate(self._flat) if isinstance(f, TokenFile)}
        self._blocks = np.zeros((len(self._flat), 3), np.uint64)  # addresses of state, seen, used; 0: not checked
        for number, f in self._files.items():
            self._blocks[number] = _address(f.state), _address(f.seen), _address(f.used)
        self._found = np.empty((2, MOST), np.int64)
        self.lasting = all(f.lasting for f in self._files.values())
        self.cache_bytes = min((f.cache_bytes for f in self._files.values() if not f.lasting), default=0)
        pack, documents = order.pack, order.documents
        self._runs = tuple(map(_read_only, (pack.sample_first_run, pack.run_document, pack.run_start, pack.run_length)))
        self._documents = tuple(map(_read_only, (documents.shard, documents.offset)))

    def gather(self, rows: NDArray[np.int64]) -> tuple[Arrays, dict[int, Damage]]:
        """input_ids, labels, position_ids (int64) and document_ids (int32), each (rows, sequence length); and which of
        the rows cannot be had, as a block of theirs is damaged. What stands in those rows is no sample."""
        out = self._empty(len(rows))
        if not self._files:
            self._copy(rows, out)
            return out, {}
        if not self._check(rows):
            self._copy(rows, out)
            if self.lasting or not self._unready(rows):
                return out, {}
        a, b, c, d = out
        damaged: dict[int, Damage] = {}
        for i in range(len(rows)):
            one = slice(i, i + 1)
            if (damage := self._one(rows[one], (a[one], b[one], c[one], d[one]))) is not None:
                damaged[i] = damage
        return out, damaged

    def ahead(self, rows: NDArray[np.int64]) -> tuple[int, list[Future[None]]]:
        """Begin to fetch what these rows need and is not here. Returns how many bytes of blocks they touch that were
        not looked at yet, and what has begun."""
        parts = self._unready(rows)
        begun = [future for file, blocks in parts for future in file.ahead(blocks)]
        return sum(len(blocks) for _, blocks in parts) * BLOCK_BYTES, begun

    def _one(self, row: NDArray[np.int64], out: Arrays) -> Damage | None:
        for _ in range(TRIES):
            for damage in self._check(row):
                return damage
            self._copy(row, out)
            if self.lasting or not self._unready(row):
                return None
        raise contested(next(iter(self._files.values())).path)

    def _check(self, rows: NDArray[np.int64]) -> list[Damage]:
        """Have the blocks of these rows here and compared with their digests. Returns the first damaged ones."""
        for _ in range(TRIES):
            parts = self._unready(rows)
            for file, blocks in parts:
                file.ahead(blocks)
            damaged = [damage for file, blocks in parts for damage in file.check(blocks)]
            if damaged or not parts:
                return damaged
        return []  # what was brought was taken away again: the caller looks once more

    def _unready(self, rows: NDArray[np.int64]) -> list[tuple[TokenFile, NDArray[np.int64]]]:
        """Files and their blocks that these rows touch and that were not compared yet as they are now; at most MOST."""
        item, now = self._like.dtype.itemsize, time.time_ns()
        found = self._found
        count = _touched(rows, *self._runs, *self._documents, self._size, item, BLOCK_BYTES, self._blocks, now, found)
        if not count:
            return []
        file, block = np.unique(found[:, :count], axis=1)
        return [(self._files[number], block[file == number]) for number in np.unique(file).tolist()]

    def _copy(self, rows: NDArray[np.int64], out: Arrays) -> None:
        bad = _gather(rows, *self._runs, *self._documents, self._data, self._size, self._like, *out)
        if bad >= 0:
            document = int(self._order.pack.run_document[bad])
            raise CorruptStore(
                "the index of a document points outside its token file",
                where=f"document {document}, token file {int(self._order.documents.shard[document])}",
                why="the token file is shorter than when the corpus was made, or the index is damaged",
                fix="prepare again",
            )

    def _empty(self, rows: int) -> Arrays:
        shape = (rows, self._order.sequence_length)
        inputs, labels, positions = (np.empty(shape, np.int64) for _ in range(3))
        return inputs, labels, positions, np.empty(shape, np.int32)


def _bytes(file: Tokens | Loss) -> NDArray[Any] | None:
    return file.data if isinstance(file, TokenFile) else file


def _address(array: NDArray[Any] | None) -> int:
    return 0 if array is None or not array.size else array.ctypes.data


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
    address: NDArray[np.uint64],
    file_size: NDArray[np.int64],
    like: NDArray[Any],
    input_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    document_ids: NDArray[np.int32],
) -> int:
    """Fill the four arrays; returns -1, or the run that lies outside its file. address: of the files' data, then of
    what is predicted of each, 0 where that is all."""
    files = len(file_size)
    for i in range(len(rows)):
        at = 0
        first, last = sample_first_run[rows[i]], sample_first_run[rows[i] + 1]
        for run in range(first, last):
            file = document_file[run_document[run]]
            begin = document_offset[run_document[run]] + run_start[run]
            length = np.int64(run_length[run])
            if file < 0 or file >= files or begin < 0 or begin + length >= file_size[file]:
                return run
            # Loops over slices that begin at 0: numba then needs no test for negative indices, and LLVM vectorises.
            tokens = _carray(_pointer(address[file]), (file_size[file],), like.dtype)[begin : begin + length + 1]
            inputs, following = input_ids[i, at : at + length], labels[i, at : at + length]
            positions, numbers = position_ids[i, at : at + length], document_ids[i, at : at + length]
            for j in range(length):
                inputs[j] = tokens[j]
            for j in range(length):
                following[j] = tokens[j + 1]
            if address[files + file] != 0:
                predicted = _carray(_pointer(address[files + file]), (file_size[file],), np.uint8)
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


@kernel
def _touched(
    rows: NDArray[np.int64],
    sample_first_run: NDArray[np.int64],
    run_document: NDArray[np.int64],
    run_start: NDArray[np.int64],
    run_length: NDArray[np.int32],
    document_file: NDArray[np.int32],
    document_offset: NDArray[np.int64],
    file_size: NDArray[np.int64],
    item_bytes: int,
    block_bytes: int,
    address: NDArray[np.uint64],
    now: int,
    found: NDArray[np.int64],
) -> int:
    """Fill `found` (2, most) with the files and blocks that the rows touch and whose state is not the one that was
    seen, some perhaps twice; returns how many. What is wanted is marked with the time. Runs outside their file are left
    to _gather. address: (2 files, 3), of state, seen and used of the token files, then of what is predicted of them."""
    files, count = len(file_size), 0
    for i in range(len(rows)):
        for run in range(sample_first_run[rows[i]], sample_first_run[rows[i] + 1]):
            file = np.int64(document_file[run_document[run]])
            begin = document_offset[run_document[run]] + run_start[run]
            last = begin + np.int64(run_length[run])
            if file < 0 or file >= files or begin < 0 or last >= file_size[file]:
                continue
            for part in range(2):
                which, size = (file, item_bytes) if part == 0 else (files + file, 1)
                if address[which, 0] == 0:
                    continue
                blocks = (file_size[file] * size + block_bytes - 1) // block_bytes
                state = _carray(_pointer(address[which, 0]), (blocks,), np.uint32)
                seen = _carray(_pointer(address[which, 1]), (blocks,), np.uint32)
                for block in range(begin * size // block_bytes, ((last + 1) * size - 1) // block_bytes + 1):
                    if address[which, 2] != 0:
                        used = _carray(_pointer(address[which, 2]), (blocks,), np.int64)
                        used[block] = now
                    if state[block] != seen[block] and count < found.shape[1]:
                        found[0, count], found[1, count] = which, block
                        count += 1
    return count
