"""Copy the tokens of some samples out of the memory-mapped token files: one pass, straight into the batch's arrays.

The kernel reads all files through their base addresses, so that a batch is one call however many files there are.
Every run is checked against its file's size first: a damaged index is an error, never a wrong token or a crash.

Samples lie scattered, and waiting for memory is what costs: the look-ups of all runs are made first, side by side, and
the lines of later runs are asked for while one is copied. Cost: 16 bytes written a token and two to five read;
bench/loader.py prints the rate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sheaf.corpus.blocks import BLOCK_BYTES
from sheaf.corpus.tokens import TRIES, Damage, TokenFile, contested
from sheaf.errors import CorruptStore
from sheaf.kernel import kernel, load_numba, read_only
from sheaf.order.bounds import Bounds
from sheaf.order.losses import Loss
from sheaf.order.memory import Memory
from sheaf.order.order import Order

load_numba()

PADDING_TOKEN, PADDING_LABEL = 0, -100

_carray: Any = numba.carray  # typed wrongly for addresses in numba's stubs

MOST = 4096  # blocks looked at together
AT_ONCE = 3  # times that blocks are brought for some rows at once, before a small cache gets them row by row
TOGETHER = 16  # samples whose runs are looked up before they are copied
AHEAD = 16  # runs: with 0, 4, 8, 16 and 32 a core copied 730, 910, 1,070, 1,200 and 1,300 million tokens a second
LINE_BYTES = 64  # of a processor's cache

Tokens = NDArray[Any] | TokenFile
Arrays = tuple[NDArray[np.int64], NDArray[np.int64]]  # input_ids, labels


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
        self._like = np.empty(0, next(iter(kinds), np.dtype(np.uint16)))
        self._files = {number: f for number, f in enumerate(self._flat) if isinstance(f, TokenFile)}
        self._address = np.zeros((len(self._flat), 4), np.uint64)
        for number, f in enumerate(self._flat):
            parts = (f.data, f.state, f.seen, f.used) if isinstance(f, TokenFile) else (f,)
            self._address[number, : len(parts)] = [_address(part) for part in parts]
        self._found = np.empty((2, MOST), np.int64)
        self.lasting = all(f.lasting for f in self._files.values())
        self.cache_bytes = min((f.cache_bytes for f in self._files.values() if not f.lasting), default=0)
        pack, documents = order.pack, order.documents
        columns = pack.sample_first_run, pack.run_document, pack.run_start, pack.run_length
        # Memory-mapped columns are read-only, arrays are not: numba would compile once for each combination.
        self._columns = tuple(read_only(np.asarray(x)) for x in (*columns, documents.shard, documents.offset))
        self._memory, self._memory_of_bounds = Memory(), Memory()
        self._nothing = self._empty(0, 0)

    def gather(self, rows: NDArray[np.int64], width: int) -> tuple[Arrays, dict[int, Damage]]:
        """input_ids and labels, int64 (rows, width); and which of the rows cannot be had, as a block of theirs is
        damaged. What stands in those rows is no sample. width: no less than the longest of the samples."""
        out = a, b = self._empty(len(rows), width)
        if not (self._read(rows, out) and self._certain(rows)):
            damaged: dict[int, Damage] = {}
            for i in range(len(rows)):
                one = slice(i, i + 1)
                damage = self._one(rows[one], (a[one], b[one]))
                if damage is not None:
                    damaged[i] = damage
            return out, damaged
        return out, {}

    def bounds(self, rows: NDArray[np.int64], width: int) -> Bounds:
        """Where documents begin and end in these rows."""
        return Bounds(rows, (self._columns[0], self._columns[3]), width, self._memory_of_bounds)

    def ahead(self, rows: NDArray[np.int64]) -> tuple[int, list[Future[None]]]:
        """Begin to fetch what these rows need and is not here. Returns how many bytes of blocks they touch that were
        not looked at yet, and what has begun."""
        parts = self._unready(rows)
        begun = [future for file, blocks in parts for future in file.ahead(blocks)] if self._fit(parts) else []
        return sum(len(blocks) for _, blocks in parts) * BLOCK_BYTES, begun

    def _fit(self, parts: list[tuple[TokenFile, NDArray[np.int64]]]) -> bool:
        """Whether a cache holds these blocks easily; else they would push each other out."""
        return self.lasting or 2 * sum(len(blocks) for _, blocks in parts) * BLOCK_BYTES <= self.cache_bytes

    def _one(self, row: NDArray[np.int64], out: Arrays) -> Damage | None:
        """Read one row, whatever else wants room in a cache; or say why it cannot be had."""
        for _ in range(TRIES):
            for damage in self._have(self._unready(row)):
                return damage
            if self._read(row, out) and self._certain(row):
                return None
        raise contested(next(iter(self._files.values())).path)

    def _read(self, rows: NDArray[np.int64], out: Arrays) -> bool:
        """Fill `out`, after blocks that were not looked at yet have been brought and compared. False: some are damaged,
        or taken away as soon as they are brought."""
        for _ in range(TRIES if self.lasting else AT_ONCE):
            wanting = self._kernel(rows, out)
            if not wanting:
                return True
            if (len(rows) > 1 and not self._fit(wanting)) or self._have(wanting):
                return False
        return False

    def _certain(self, rows: NDArray[np.int64]) -> bool:
        """Whether what was just read stood there all the time."""
        return self.lasting or not self._unready(rows)

    def _have(self, parts: list[tuple[TokenFile, NDArray[np.int64]]]) -> list[Damage]:
        """Bring these blocks and compare them. Returns the damaged ones."""
        for file, blocks in parts:
            file.ahead(blocks)
        return [damage for file, blocks in parts for damage in file.check(blocks)]

    def _unready(self, rows: NDArray[np.int64]) -> list[tuple[TokenFile, NDArray[np.int64]]]:
        """Files and their blocks that these rows touch and that were not compared yet as they are now; at most MOST."""
        return self._kernel(rows, None)

    def _kernel(self, rows: NDArray[np.int64], out: Arrays | None) -> list[tuple[TokenFile, NDArray[np.int64]]]:
        """Fill `out` (None: do not), if the list of what is wanting is empty."""
        found, now = self._found, 0 if self.lasting else time.time_ns()
        arrays = self._nothing if out is None else out
        count = _gather(
            rows, *self._columns, self._size, self._address, BLOCK_BYTES, now, found, self._like, out is not None,
            *arrays,
        )  # fmt: skip
        if count < 0:
            raise self._outside(-1 - count)
        if count == 0:
            return []
        both = np.unique((found[0, :count] << 40) | found[1, :count])
        file, block = both >> 40, both & ((1 << 40) - 1)
        return [(self._files[number], block[file == number]) for number in np.unique(file).tolist()]

    def _outside(self, run: int) -> CorruptStore:
        document = int(self._order.pack.run_document[run])
        return CorruptStore(
            "the index of a document points outside its token file",
            where=f"document {document}, token file {int(self._order.documents.shard[document])}",
            why="the token file is shorter than when the corpus was made, or the index is damaged",
            fix="prepare again",
        )

    def _empty(self, rows: int, width: int) -> Arrays:
        inputs, labels = self._memory.take(4 * rows * width).view(np.int64).reshape(2, rows, width)
        return inputs, labels


def _address(array: NDArray[Any] | None) -> int:
    return 0 if array is None or not array.size else array.ctypes.data


def padded(array: NDArray[np.int64], rows: int, padding: int) -> NDArray[np.int64]:
    """The same with empty samples added at the end, up to `rows`."""
    lacking = rows - len(array)
    return array if lacking <= 0 else np.pad(array, ((0, lacking), (0, 0)), constant_values=padding)


def _to_pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(address), generate


_pointer: Any = intrinsic(_to_pointer)  # (address) → void pointer, inside kernels


def _to_prefetch(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, number(0), number(2), number(1)])  # to read, into the second-level cache, data
        return context.get_dummy_value()

    return numba.types.none(address), generate


_prefetch: Any = intrinsic(_to_prefetch)  # (address) → nothing: the line of memory there is asked for


@kernel
def _gather(
    rows: NDArray[np.int64],
    sample_first_run: NDArray[np.int64],
    run_document: NDArray[np.int64],
    run_start: NDArray[np.int64],
    run_length: NDArray[np.int32],
    document_file: NDArray[np.int32],
    document_offset: NDArray[np.int64],
    file_size: NDArray[np.int64],
    address: NDArray[np.uint64],
    block_bytes: int,
    now: int,
    found: NDArray[np.int64],
    like: NDArray[Any],
    copy: bool,
    input_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> int:
    """Fill the two arrays, if all blocks that the rows touch are as they were seen; returns 0 then.

    Else how many blocks of `found` (files, blocks; some perhaps twice) are not; a run that lies outside its file gives
    -1 - run. address: (2 files, 4), of data, state, seen and used of the token files, then of what is predicted of
    them; 0: all is predicted, is not checked, is not marked with the time.

    In passes over some rows at a time: where the runs lie, what is known of their blocks, the copy, for which later
    runs' lines are asked for meanwhile. The memory then fetches many lines at once; in one pass it would fetch a run's
    index, wait, then its first lines, and wait.
    """
    count = 0
    for top in range(0, len(rows), TOGETHER):
        some = rows[top : top + TOGETHER]
        first = np.zeros(len(some) + 1, np.int64)  # of each sample: the number of its first run among these
        for i in range(len(some)):
            first[i + 1] = first[i] + sample_first_run[some[i] + 1] - sample_first_run[some[i]]
        where = np.empty((3, first[-1]), np.int64)  # by run: file, first token there, length
        for i in range(len(some)):
            for at in range(first[i], first[i + 1]):
                run = sample_first_run[some[i]] + at - first[i]
                where[0, at] = document_file[run_document[run]]
                where[1, at] = document_offset[run_document[run]] + run_start[run]
                where[2, at] = run_length[run]
        for i in range(len(some)):
            for at in range(first[i], first[i + 1]):
                file, begin, length = where[:, at]
                if file < 0 or file >= len(file_size) or begin < 0 or begin + length >= file_size[file]:
                    return -1 - (sample_first_run[some[i]] + at - first[i])
        count = _compare(where, file_size, address, like.itemsize, block_bytes, now, found, count)
        if count == 0 and copy:
            end = top + len(some)
            _copy(first, where, file_size, address, like, input_ids[top:end], labels[top:end])
    return count


@kernel
def _compare(
    where: NDArray[np.int64],
    file_size: NDArray[np.int64],
    address: NDArray[np.uint64],
    item_bytes: int,
    block_bytes: int,
    now: int,
    found: NDArray[np.int64],
    count: int,
) -> int:
    """Add the files and blocks of these runs whose state is not the one that was seen to the `count` found so far."""
    files = len(file_size)
    for file, begin, length in where.T:
        for part in range(2):
            which, size = (file, item_bytes) if part == 0 else (files + file, 1)
            if address[which, 1] == 0:
                continue
            blocks = (file_size[file] * size + block_bytes - 1) // block_bytes
            state = _carray(_pointer(address[which, 1]), (blocks,), np.uint32)
            seen = _carray(_pointer(address[which, 2]), (blocks,), np.uint32)
            for block in range(begin * size // block_bytes, ((begin + length + 1) * size - 1) // block_bytes + 1):
                if address[which, 3] != 0:
                    used = _carray(_pointer(address[which, 3]), (blocks,), np.int64)
                    used[block] = now
                if state[block] != seen[block] and count < found.shape[1]:
                    found[0, count], found[1, count] = which, block
                    count += 1
    return count


@kernel
def _ask_for(run: NDArray[np.int64], address: NDArray[np.uint64], item_bytes: int) -> None:
    file, begin, length = run
    begins = address[file, 0] + np.uint64(begin * item_bytes)
    for line in range(0, (length + 1) * item_bytes, LINE_BYTES):
        _prefetch(begins + np.uint64(line))


@kernel
def _copy(
    first: NDArray[np.int64],
    where: NDArray[np.int64],
    file_size: NDArray[np.int64],
    address: NDArray[np.uint64],
    like: NDArray[Any],
    input_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> None:
    files, runs = len(file_size), where.shape[1]
    for at in range(min(AHEAD, runs)):
        _ask_for(where[:, at], address, like.itemsize)
    for i in range(len(first) - 1):
        place = 0
        for at in range(first[i], first[i + 1]):
            if at + AHEAD < runs:
                _ask_for(where[:, at + AHEAD], address, like.itemsize)
            file, begin, length = where[:, at]
            # Loops over slices that begin at 0: numba then needs no test for negative indices, and LLVM vectorises.
            tokens = _carray(_pointer(address[file, 0]), (file_size[file],), like.dtype)[begin : begin + length + 1]
            inputs, following = input_ids[i, place : place + length], labels[i, place : place + length]
            for j in range(length):
                inputs[j] = tokens[j]
            for j in range(length):
                following[j] = tokens[j + 1]
            if address[files + file, 0] != 0:
                predicted = _carray(_pointer(address[files + file, 0]), (file_size[file],), np.uint8)
                flags = predicted[begin + 1 : begin + length + 1]
                for j in range(length):
                    if flags[j] == 0:
                        following[j] = PADDING_LABEL
            place += length
        input_ids[i, place:] = PADDING_TOKEN
        labels[i, place:] = PADDING_LABEL
