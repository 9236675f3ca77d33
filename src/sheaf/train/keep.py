"""Which checkpoints of a run stay: the newest `keep`, and the one with the lowest loss on held-out text.

A checkpoint has a validation loss, in its manifest, if it was evaluated at the very step it was saved at, which is so
at every one where `evaluate_every` and `checkpoint_every` agree, as by default. The best so far is never taken away, so
it is the best of the whole run. Cost: one checkpoint more on disk, and reading a few manifests at each save.
"""

from __future__ import annotations

import math
from pathlib import Path

import orjson

MANIFEST = "manifest.json"
LOSS = "validation_loss"


def outdated(newest_first: list[Path], keep: int, *, best: bool) -> list[Path]:
    """Those that may go. best: keep the best one beside the newest."""
    stay = set(newest_first[:keep])
    if best and (found := best_of(newest_first)) is not None:
        stay.add(found)
    return [path for path in newest_first if path not in stay]


def best_of(newest_first: list[Path]) -> Path | None:
    """The checkpoint with the lowest validation loss, of equal ones the newest; None if none has one."""
    losses = {path: loss for path in newest_first if math.isfinite(loss := loss_of(path))}
    return min(losses, key=lambda path: losses[path], default=None)


def loss_of(checkpoint: Path) -> float:
    """Its validation loss; infinite if it has none, or cannot be read."""
    try:
        loss = orjson.loads((checkpoint / MANIFEST).read_bytes()).get(LOSS)
    except (OSError, ValueError, AttributeError):
        return math.inf
    return float(loss) if isinstance(loss, (int, float)) else math.inf
