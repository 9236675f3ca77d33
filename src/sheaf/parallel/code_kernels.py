"""Codes of `coded.py` for numbers in the processor's memory: one pass over a block while it lies in the cache.

The same answers as the torch code there, which takes some ten passes over the whole, but for the order of a block's
sums; three to six times as fast. numpy arrays in and out, without the interpreter's lock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sheaf.kernel import kernel

TINY = np.float32(np.finfo(np.float32).tiny)


@kernel
def pack_int8(values: NDArray[np.float32], block: int, numbers: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
    """values: (blocks · block,). Fills numbers, as many, and scales, (blocks,)."""
    for b in range(len(scales)):
        start = b * block
        largest = np.float32(0)
        for i in range(start, start + block):
            size = abs(values[i])
            if size > largest or size != size:  # NaN stays: nothing is above it
                largest = size
        scale = max(largest / np.float32(127), TINY) if largest == largest else largest
        scales[b] = scale
        for i in range(start, start + block):
            numbers[i] = np.int8(np.rint(values[i] / scale)) if largest == largest else np.int8(0)


@kernel
def pack_two_bit(
    values: NDArray[np.float32], block: int, packed: NDArray[np.uint8], scales: NDArray[np.float32]
) -> None:
    """values: (blocks · block,). Fills packed, a quarter as many, and scales, (blocks, 2): low and high."""
    quarter = block // 4
    codes = np.empty(block, np.uint8)
    for b in range(len(scales)):
        start = b * block
        squares = np.float32(0)
        for i in range(start, start + block):
            squares += values[i] * values[i]
        root = np.sqrt(squares / np.float32(block))
        low, high, number = np.float32(0), np.float32(0), 0
        for i in range(block):
            value = values[start + i]
            size = abs(value)
            is_high = size >= root
            codes[i] = 2 * is_high + (value < 0)
            number += is_high
            high += size * np.float32(is_high)
            low += size * np.float32(not is_high)
        scales[b, 0] = low / np.float32(max(block - number, 1))
        scales[b, 1] = high / np.float32(max(number, 1))
        for i in range(quarter):
            two = codes[i] | codes[quarter + i] << 2
            packed[b * quarter + i] = two | codes[2 * quarter + i] << 4 | codes[3 * quarter + i] << 6


@kernel
def unpack_two_bit(
    packed: NDArray[np.uint8], block: int, scales: NDArray[np.float32], values: NDArray[np.float32]
) -> None:
    """The other way round."""
    quarter = block // 4
    levels = np.empty(4, np.float32)
    for b in range(len(scales)):
        levels[0], levels[1], levels[2], levels[3] = scales[b, 0], -scales[b, 0], scales[b, 1], -scales[b, 1]
        for i in range(quarter):
            byte = packed[b * quarter + i]
            for part in range(4):
                values[b * block + part * quarter + i] = levels[byte >> 2 * part & 3]
