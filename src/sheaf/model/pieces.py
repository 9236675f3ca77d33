"""Which part of a published parameter a rank holds: a box of it.

However a layout cuts a model (columns by tensor, rows by shard, layers by pipeline), what is left of a parameter on a
rank is a box: a range of each of its dimensions. So values are filled in, written to a checkpoint and read back under
any other layout by one rule, the overlap of boxes, and nothing else knows how a layout came to be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

Box = tuple[tuple[int, int], ...]  # (from, to) of each dimension
Values = Callable[[str, "Piece"], Tensor]  # of a parameter's name: the values of this piece of it


@dataclass(frozen=True)
class Piece:
    """shape: of the whole parameter. box: what is held of it; perhaps nothing (from = to)."""

    shape: tuple[int, ...]
    box: Box

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Piece:
        return Piece(tuple(shape), tuple((0, size) for size in shape))

    @property
    def is_whole(self) -> bool:
        return self == Piece.whole(self.shape)

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of what is held."""
        return tuple(end - start for start, end in self.box)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where it lies in the whole parameter."""
        return tuple(slice(start, end) for start, end in self.box)

    def cut(self, dimension: int, start: int, end: int) -> Piece:
        """Only [start, end) of a dimension, counted inside this piece."""
        first = self.box[dimension][0]
        part = (first + start, first + end)
        return replace(self, box=(*self.box[:dimension], part, *self.box[dimension + 1 :]))

    def overlap(self, box: Box) -> Box | None:
        """What both hold, in coordinates of the whole; None if that is nothing."""
        both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(self.box, box, strict=True))
        return both if all(start < end for start, end in both) else None

    def inside(self, box: Box) -> tuple[slice, ...]:
        """Where a box of the whole lies in what is held."""
        return tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(box, self.box, strict=True))


def even_range(total: int, parts: int, part: int) -> tuple[int, int]:
    """[from, to) of one of `parts` parts whose sizes differ by one at most, the larger ones first."""
    share, more = divmod(total, parts)
    start = part * share + min(part, more)
    return start, start + share + (part < more)


def chunk_range(total: int, parts: int, part: int) -> tuple[int, int]:
    """[from, to) as torch.chunk cuts, and so FSDP2: equal parts, the last ones perhaps smaller or empty."""
    size = -(-total // parts)
    return min(part * size, total), min((part + 1) * size, total)
