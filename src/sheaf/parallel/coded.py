"""Gradients summed in fewer bits a number: rounded to bf16, or to int8 or two bits with scales for each block.

Each rank cuts its bucket into as many parts as there are ranks and sends every rank its part; the owner of a part adds
up in fp32, in the order of ranks, rounds the sum once, and sends it to all. So all ranks end with the same bits, and a
number is rounded twice at most, whatever their number. Two ranks (or hosts) send each other all they have, which is as
many bytes: each share is rounded once.

    bf16    2 bytes. Relative error of a number sent: at most 2⁻⁸; so that of a sum of ranks' shares a, b, …: at most
            2⁻⁸·(|a| + |b| + …) + 2⁻⁸·|sum|. Nothing is kept: the error is below what bf16 products make.
    int8    1 byte, and 4 for a block of 128. Error: at most half of 1/127 of the block's largest magnitude, each time.
            What was lost is kept and goes into the next step (1-bit SGD, Seide et al. 2014; EF-SGD, Karimireddy et al.
            2019): by each rank for what it sent, by the owner for the sum it rounded. The sum over ranks of what is
            kept is what the step's gradient lacks, exactly.
    two-bit 1/4 byte, and 4 for a block of 256: a number's sign, and whether its magnitude is above the block's root
            mean square; either half of the block stands for its mean magnitude. Error: 12% of the square of normally
            distributed numbers (Max 1960: no four levels do better), and never more than the square itself, so what is
            kept stays bounded. Kept as for int8.

Cost: 2·(N−1)/N times these bytes from every rank, two messages a bucket; some ten passes over the bucket's memory.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from sheaf.parallel.code_kernels import pack_int8, pack_two_bit, unpack_two_bit
from sheaf.parallel.wire import Wire

BLOCK = 128  # numbers that share scales: of one row, mostly, whose gradients are alike; over several rows a third worse


class Code(Protocol):
    """encode: fp32 (rows, n) → bytes (rows, m), the same m for the same n. decode: the other way."""

    def encode(self, values_rn: Tensor) -> Tensor: ...

    def decode(self, bytes_rm: Tensor) -> Tensor: ...


class Bf16:
    def encode(self, values_rn: Tensor) -> Tensor:
        return values_rn.to(torch.bfloat16).view(torch.uint8)

    def decode(self, bytes_rm: Tensor) -> Tensor:
        return bytes_rm.view(torch.bfloat16).float()


class Int8:
    """Rows are whole blocks: their bytes, then the scales."""

    def encode(self, values_rn: Tensor) -> Tensor:
        if values_rn.device.type == "cpu":
            numbers = torch.empty(values_rn.shape, dtype=torch.int8)
            scale = torch.empty(len(values_rn), values_rn.shape[1] // BLOCK)
            pack_int8(_array(values_rn), BLOCK, _array(numbers), _array(scale))
            return torch.cat([numbers.view(torch.uint8), scale.view(torch.uint8)], 1)
        return self.encode_anywhere(values_rn)

    def encode_anywhere(self, values_rn: Tensor) -> Tensor:
        blocks = values_rn.unflatten(1, (-1, BLOCK))
        largest = torch.linalg.vector_norm(blocks, ord=float("inf"), dim=2, keepdim=True)
        scale = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)  # a block of zeros has one too; NaN stays
        numbers = torch.div(blocks, scale).round_().to(torch.int8)
        return torch.cat([numbers.flatten(1).view(torch.uint8), scale.flatten(1).view(torch.uint8)], 1)

    def decode(self, bytes_rm: Tensor) -> Tensor:
        count = bytes_rm.shape[1] // (BLOCK + 4) * BLOCK
        numbers, scales = bytes_rm[:, :count].view(torch.int8), bytes_rm[:, count:].contiguous().view(torch.float32)
        return torch.mul(numbers.unflatten(1, (-1, BLOCK)), scales[:, :, None]).flatten(1)


class TwoBit:
    """Rows are whole blocks: four numbers a byte, each from another quarter of its block; then two scales a block."""

    def encode(self, values_rn: Tensor) -> Tensor:
        if values_rn.device.type == "cpu":
            packed = torch.empty(len(values_rn), values_rn.shape[1] // 4, dtype=torch.uint8)
            scales = torch.empty(len(values_rn), values_rn.shape[1] // BLOCK, 2)
            pack_two_bit(_array(values_rn), BLOCK, _array(packed), _array(scales, 2))
            return torch.cat([packed, scales.flatten(1).to(torch.bfloat16).view(torch.uint8)], 1)
        return self.encode_anywhere(values_rn)

    def encode_anywhere(self, values_rn: Tensor) -> Tensor:
        blocks = values_rn.unflatten(1, (-1, BLOCK))
        sizes = blocks.abs()
        root = torch.linalg.vector_norm(blocks, dim=2, keepdim=True) / BLOCK**0.5
        is_high = sizes >= root
        high, number = (sizes * is_high).sum(2), is_high.sum(2)
        low = (sizes.sum(2) - high).clamp_min_(0) / (BLOCK - number).clamp_min_(1)  # the difference may round below 0
        scales = torch.stack([low, high / number.clamp_min(1)], 2).to(torch.bfloat16)
        codes = (is_high.to(torch.uint8) * 2 + (blocks < 0).to(torch.uint8)).unflatten(2, (4, -1))
        packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
        return torch.cat([packed.flatten(1), scales.flatten(1).view(torch.uint8)], 1)

    def decode(self, bytes_rm: Tensor) -> Tensor:
        count = bytes_rm.shape[1] // (BLOCK // 4 + 4) * (BLOCK // 4)
        scales = bytes_rm[:, count:].contiguous().view(torch.bfloat16).float().unflatten(1, (-1, 2))
        if bytes_rm.device.type == "cpu":
            values = torch.empty(len(bytes_rm), 4 * count)
            unpack_two_bit(_array(bytes_rm[:, :count]), BLOCK, _array(scales, 2), _array(values))
            return values
        return self.decode_anywhere(bytes_rm[:, :count], scales)

    def decode_anywhere(self, packed_rm: Tensor, scales: Tensor) -> Tensor:
        packed = packed_rm.unflatten(1, (-1, BLOCK // 4))
        levels = torch.stack([scales, -scales], 3).flatten(2)  # by code: low, -low, high, -high
        codes = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], 2).flatten(2)
        return levels.gather(2, codes.to(torch.int64)).flatten(1)


class CodedSum:
    """Of one bucket. numbers: of gradients in it; what lies behind them fills the last block. kept: what this rank has
    still to send, or None where a code keeps nothing."""

    def __init__(self, code: Code, numbers: int, kept: Tensor | None) -> None:
        self.code, self.numbers, self.kept = code, numbers, kept
        self.bases: dict[int, Tensor] = {}

    def __call__(self, flat: Tensor, wire: Wire) -> None:
        """flat: fp32, (ranks · a multiple of BLOCK,); becomes the sum."""
        if self.kept is not None:
            flat += self.kept
        if wire.group.size == 2:
            self._of_two(flat, wire)
        else:
            self._by_owners(flat, wire)
        for filled in (flat, self.kept):  # two bits know no zero, and a checkpoint does not know of these
            if filled is not None:
                filled[self.numbers :].zero_()

    def _of_two(self, flat: Tensor, wire: Wire) -> None:
        """As many bytes as by owners, and each share is rounded once, the sum not at all."""
        sent = self.code.encode(flat[None])
        shares_rn = self.code.decode(wire.gather(sent[0]))
        if self.kept is not None:
            torch.sub(flat, shares_rn[wire.group.rank], out=self.kept)
        torch.add(shares_rn[0], shares_rn[1], out=flat)

    def _by_owners(self, flat: Tensor, wire: Wire) -> None:
        me, size = wire.group.rank, wire.group.size
        parts_rn = flat.view(size, -1)
        sent = self.code.encode(parts_rn)
        received = wire.exchange(sent)
        mine = parts_rn[me].clone()  # it was not sent: exact
        for sender in range(size):
            if sender != me:
                mine += self.code.decode(received[sender : sender + 1])[0]
        total = self.code.encode(mine[None])
        if self.kept is not None:
            kept_rn = self.kept.view(size, -1)
            torch.sub(parts_rn, self.code.decode(sent), out=kept_rn)
            torch.sub(mine, self.code.decode(total)[0], out=kept_rn[me])
        parts_rn.copy_(self.code.decode(wire.gather(total[0])))


def _array(tensor: Tensor, width: int = 1) -> NDArray[Any]:
    """As the kernels take it: flat, or in rows of a width."""
    flat: NDArray[Any] = tensor.contiguous().detach().view(-1).numpy()
    return flat if width == 1 else flat.reshape(-1, width)
