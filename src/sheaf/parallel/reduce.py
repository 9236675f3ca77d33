"""Which way a bucket of gradients is summed: one line a way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sheaf.parallel import coded, largest
from sheaf.parallel.coded import Bf16, CodedSum, Int8, TwoBit
from sheaf.parallel.largest import LargestSum
from sheaf.parallel.powersgd import LowRankSum
from sheaf.parallel.wire import Wire
from sheaf.recipe import Communication


class BucketSum(Protocol):
    """kept: what of this rank's gradients was not sent yet, fp32, as the bucket; None if a way keeps nothing. bases: of
    some gradients, by their number, what all ranks have learned in the steps before."""

    kept: Tensor | None
    bases: dict[int, Tensor]

    def __call__(self, flat: Tensor, wire: Wire) -> None:
        """Make of a bucket the group's sum, the same bits on every rank."""
        ...


class ExactSum:
    """A ring all-reduce in fp32 (Patarasuk and Yuan 2009): 2·(N−1)/N of the bucket's bytes from every rank."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None
        self.bases: dict[int, Tensor] = {}

    def __call__(self, flat: Tensor, wire: Wire) -> None:
        wire.all_reduce(flat)


def bucket_length(numbers: int, how: Communication, ranks: int) -> int:
    """How long a bucket is that holds so many numbers: of whole blocks, as many for every rank."""
    step = {"bf16": ranks, "int8": ranks * coded.BLOCK, "two-bit": ranks * coded.BLOCK, "topk": largest.BLOCK}.get(
        how.gradients, 1
    )
    return -(-numbers // step) * step


def share_sent(how: Communication, ranks: int) -> float:
    """About how many bytes a rank sends of one byte of gradients, relative to what fp32 sends. (PowerSGD: of a matrix
    with 1,024 rows and columns.)"""
    ring = 2 * (ranks - 1) / ranks
    return {
        "fp32": 1.0,
        "bf16": 0.5,
        "int8": 0.25 * (1 + 4 / coded.BLOCK),
        "two-bit": 0.0625 * (1 + 16 / coded.BLOCK),
        "powersgd": 2 * how.rank / 1024,
        "topk": how.share * (ranks - 1) / ring,
    }[how.gradients]


def sum_of(how: Communication, flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> BucketSum:
    """What sums a bucket. shapes: of the gradients in it, end to end."""
    numbers = sum(torch.Size(shape).numel() for shape in shapes)
    match how.gradients:
        case "fp32":
            return ExactSum()
        case "bf16":
            return CodedSum(Bf16(), numbers, None)
        case "int8":
            return CodedSum(Int8(), numbers, torch.zeros_like(flat))
        case "two-bit":
            return CodedSum(TwoBit(), numbers, torch.zeros_like(flat))
        case "powersgd":
            return LowRankSum(flat, shapes, how.rank)
        case "topk":
            return LargestSum(flat, how.share)
