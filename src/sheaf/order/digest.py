"""What a set of samples holds, in 32 letters: equal digests mean equal batches, wherever and however they were made."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from sheaf.corpus.documents import Documents

if TYPE_CHECKING:
    from sheaf.order.order import Runs


def digest_of_samples(documents: Documents, runs: Runs) -> str:
    """The digest of a set of samples; see Order.digest. `runs` are by sample, as Order.runs gives them."""
    row = np.empty((len(runs.document), 32), np.uint8)
    row[:, :16] = documents.id[runs.document]
    row[:, 16:24] = runs.start.astype(">i8").view(np.uint8).reshape(-1, 8)
    row[:, 24:] = runs.length.astype(">i8").view(np.uint8).reshape(-1, 8)
    data = row.tobytes()
    border = np.flatnonzero(np.diff(runs.sample, prepend=-1, append=-1))
    samples = [
        b"".join(sorted(data[32 * i : 32 * i + 32] for i in range(a, b)))
        for a, b in zip(border[:-1].tolist(), border[1:].tolist(), strict=True)
    ]
    h = hashlib.blake2b(digest_size=16)
    for sample in sorted(samples):
        h.update(len(sample).to_bytes(8, "big"))
        h.update(sample)
    return h.hexdigest()
