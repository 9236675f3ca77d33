"""Which documents are kept from training, for evaluation: decided by the record id alone.

A record is held out if the last 8 bytes of its id, a big-endian number, lie below fraction · 2^64. The id is a hash
of the content, so the choice is random, the same in every corpus that holds the record, and monotone in the fraction.
The order sorts by the first bytes, so the choice is independent of position too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def held_out(id_n16: NDArray[np.uint8], fraction: float) -> NDArray[np.bool_]:
    """bool (n,). id_n16: uint8 (n, 16). fraction in [0, 1)."""
    tail = np.ascontiguousarray(id_n16[:, 8:]).view(">u8")[:, 0].astype(np.uint64)
    return tail < np.uint64(int(fraction * 2.0**64))
