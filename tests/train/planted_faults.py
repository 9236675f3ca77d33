"""Run by every rank of a verification before it begins: one fault for each of four layouts, and none for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sheaf.model.pieces import Piece
from sheaf.parallel.data import Gradients
from sheaf.parallel.matrices import Matrices, Whole
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.parallelize import Spread

sent, learned, make, wholes = Gradients._send, Spread.learn, Mesh.__init__, Matrices.apply
layout: dict[str, int] = {}


def note_layout(self: Mesh, *arguments: Any) -> None:
    make(self, *arguments)
    layout.update(self.layout.model_dump())


def forget_one_bucket(self: Gradients, bucket: Any) -> None:
    if layout["data"] == 2 and bucket is self.buckets[-1]:
        return
    sent(self, bucket)


def scale_wrongly(self: Spread, micro: Sequence[Any], predictions: int) -> Tensor:
    return learned(self, micro, predictions * (2 if layout["context"] == 2 else 1))


def shifted(self: Piece) -> tuple[slice, ...]:
    """The rows before its own, where a rank holds the second half of a parameter's rows."""
    shift = layout["tensor"] == 2 and self.box[0][0] > 0
    (start, end), *others = self.box
    return (slice(start - shift, end - shift), *(slice(a, b) for a, b in others))


def each_piece_alone(self: Matrices, updates: Sequence[Tensor], work: Whole) -> list[Tensor]:
    """As if orthogonal halves made an orthogonal whole: the gradients are right, the update is not."""
    return [work(update) for update in updates] if layout["shard"] == 2 else wholes(self, updates, work)


Mesh.__init__ = note_layout  # type: ignore[method-assign]
Gradients._send = forget_one_bucket  # type: ignore[method-assign]
Spread.learn = scale_wrongly  # type: ignore[method-assign]
Matrices.apply = each_piece_alone  # type: ignore[method-assign]
Piece.slices = property(shifted)  # type: ignore[assignment]
