"""What a run's newest checkpoint holds, put together from its pieces."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sheaf.model.pieces import Piece
from sheaf.train.checkpoint import Checkpoint, newest_valid


def saved_tensors(run: Path, *kinds: str) -> dict[str, Tensor]:
    """Whole tensors by "<kind>.<parameter>"; of these kinds only, and then by parameter if there is one."""
    checkpoint = newest_valid(run)
    assert isinstance(checkpoint, Checkpoint)
    shapes = {key: tuple(record["shape"]) for key, record in checkpoint.manifest["tensors"].items()}
    found = {key: checkpoint.read(key, Piece.whole(shape)) for key, shape in shapes.items()}
    chosen = {key: tensor for key, tensor in found.items() if not kinds or key.partition(".")[0] in kinds}
    return {key.partition(".")[2] if len(kinds) == 1 else key: tensor for key, tensor in chosen.items()}
