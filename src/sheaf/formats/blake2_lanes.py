"""BLAKE2b-128 of many short texts at once, one in each of eight lanes of a vector (RFC 7693; Aumasson et al. 2013).

One text alone keeps the processor waiting for itself: a round's steps depend on each other. Eight texts side by side
fill vectors of 512 bits, or two of 256, whose rotations are one instruction: about 3 GB/s a core where hashlib reaches
0.85. A lane that has finished a text takes the next one, so texts may be of any length; lanes that have none left
repeat a block of zeros. Imported only where it is wanted: it needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from sheaf.formats import text_kernels
from sheaf.formats.text_kernels import copy_bytes
from sheaf.kernel import kernel_with, read_only

LANES = 8
_START = (
    *(0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1),
    *(0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179),
)
_FIRST = (_START[0] ^ 0x01010010, *_START[1:])  # 16 bytes of digest, no key
_ORDER = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_MIXED = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
          (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))  # fmt: skip
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_I64, LANES)


def _all_lanes(value: int) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _rotated(build: Any, value: Any, right: int) -> Any:
    """LLVM makes one instruction of the three where the processor has it."""
    return build.or_(build.lshr(value, _all_lanes(right)), build.shl(value, _all_lanes(64 - right)))


def _at(build: Any, address: Any, kind: Any, words: int) -> Any:
    moved = build.add(address, ir.Constant(_I64, 8 * words))
    return build.inttoptr(moved, kind.as_pointer())


def _message(build: Any, blocks: Any) -> list[Any]:
    """The words of eight blocks, word by word, from blocks that lie anywhere: two squares of 8 words, transposed."""
    found: list[Any] = []
    for half in (0, 8):
        rows: list[Any] = []
        for lane in range(LANES):
            address = build.load(_at(build, blocks, _I64, lane))
            rows.append(build.load(_at(build, address, _VECTOR, half), align=1))
        for step in (1, 2, 4):  # swap the blocks off the diagonal, of each size in turn
            swapped = list(rows)
            for low in range(LANES):
                if low & step == 0:
                    a, b = rows[low], rows[low + step]
                    upper = [i if i & step == 0 else i - step + LANES for i in range(LANES)]
                    lower = [i + step if i & step == 0 else i + LANES for i in range(LANES)]
                    for place, mask in ((low, upper), (low + step, lower)):
                        picked = ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask)
                        swapped[place] = build.shuffle_vector(a, b, picked)
            rows = swapped
        found += rows
    return found


@intrinsic
def _compress(typing: Any, state: Any, blocks: Any, counted: Any, last: Any) -> Any:
    """The compression function F, of eight texts. All are addresses: of 8 × 8 words of state (word by word), of the
    addresses of the blocks, of the bytes so far, of all ones for a last block and else 0."""

    def code(context: Any, build: Any, signature: Any, arguments: Any) -> Any:
        at, lanes, bytes_so_far, ends = arguments
        h = [build.load(_at(build, at, _VECTOR, LANES * i), align=8) for i in range(8)]
        m = _message(build, lanes)
        v = [*h, *(_all_lanes(word) for word in _START)]
        v[12] = build.xor(v[12], build.load(_at(build, bytes_so_far, _VECTOR, 0), align=8))
        v[14] = build.xor(v[14], build.load(_at(build, ends, _VECTOR, 0), align=8))
        for round in range(12):
            order = _ORDER[round % 10]
            for step, (a, b, c, d) in enumerate(_MIXED):
                for word, first, second in ((order[2 * step], 32, 24), (order[2 * step + 1], 16, 63)):
                    v[a] = build.add(build.add(v[a], v[b]), m[word])
                    v[d] = _rotated(build, build.xor(v[d], v[a]), first)
                    v[c] = build.add(v[c], v[d])
                    v[b] = _rotated(build, build.xor(v[b], v[c]), second)
        for i in range(8):
            build.store(build.xor(h[i], build.xor(v[i], v[i + 8])), _at(build, at, _VECTOR, LANES * i), align=8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), code


# As kernels see them.
_compress_eight = cast(Callable[[int, int, int, int], None], _compress)
_FIRST_WORDS = np.array(_FIRST, np.uint64)


@kernel_with(text_kernels)
def _digest_all(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], prefix: NDArray[np.uint8],
    first: NDArray[np.uint64], digests: NDArray[np.uint64],
) -> None:  # fmt: skip
    """digests: (texts, 2), of prefix + data[starts[i] : ends[i]]. The prefix is shorter than a block."""
    n, ahead = len(starts), len(prefix)
    state = np.zeros((8, 8), np.uint64)
    scratch, zeros = np.zeros((8, 128), np.uint8), np.zeros(128, np.uint8)
    blocks = np.zeros(8, np.int64)
    counted = np.zeros(8, np.int64)
    last = np.zeros(8, np.int64)
    text = np.full(8, -1, np.int64)  # which one a lane has
    done = np.zeros(8, np.int64)  # bytes of it, with the prefix
    base, scratch_base = data.ctypes.data, scratch.ctypes.data
    following, working = 0, 0
    while True:
        for lane in range(8):
            if text[lane] < 0 and following < n:
                text[lane] = following
                done[lane] = 0
                following += 1
                working += 1
                for i in range(8):
                    state[i, lane] = first[i]
            if text[lane] < 0:
                blocks[lane] = scratch_base
                continue
            start = starts[text[lane]]
            size = ends[text[lane]] - start + ahead
            at = done[lane]
            if at > 0 and at + 128 <= size:
                blocks[lane] = base + start + at - ahead
            else:  # the prefix, or the zeros behind the end
                blocks[lane] = scratch_base + 128 * lane
                fill = min(128, size - at)
                skip = ahead if at == 0 else 0
                if fill < 128:
                    copy_bytes(blocks[lane], zeros.ctypes.data, 128)
                copy_bytes(blocks[lane], prefix.ctypes.data, skip)
                copy_bytes(int(blocks[lane]) + skip, int(base + start + at + skip - ahead), fill - skip)
            done[lane] = min(at + 128, size)
            counted[lane] = done[lane]
            last[lane] = -1 if done[lane] == size else 0
        if working == 0:
            return
        _compress_eight(state.ctypes.data, blocks.ctypes.data, counted.ctypes.data, last.ctypes.data)
        for lane in range(8):
            if text[lane] >= 0 and last[lane] != 0:
                digests[text[lane], 0] = state[0, lane]
                digests[text[lane], 1] = state[1, lane]
                text[lane] = -1
                working -= 1


def digests(
    data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], prefix: bytes
) -> NDArray[np.uint64]:
    """(texts, 2): the 16 bytes of each text's digest, as they lie in memory."""
    found = np.empty((len(starts), 2), np.uint64)
    arrays = (data if len(data) else np.zeros(1, np.uint8), starts, ends, np.frombuffer(prefix, np.uint8), _FIRST_WORDS)
    _digest_all(*map(read_only, arrays), found)
    return found
