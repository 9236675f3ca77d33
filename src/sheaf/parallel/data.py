"""Data parallel: the gradients of all ranks summed, in buckets, while the backward pass is still running.

Gradients live in a few flat fp32 buffers ("buckets") and every parameter's `.grad` is a view into one, so nothing is
copied before or after sending, zeroing is one fill a bucket, and a parameter that got no gradient has zeros on every
rank. Parameters fill buckets from the last to the first, which is about the order in which the backward finishes them.
During a step's last micro-batch a hook counts each bucket down; a full one is summed asynchronously, always in bucket
order, so that ranks never wait for each other crosswise. A rank whose share is empty joins with zeros in `finish`.

Cost: memory 4 bytes a parameter (the gradients themselves). Network: a ring all-reduce sends 2·(N-1)/N times the
buckets' bytes from every rank in a step, however many micro-batches there are (Patarasuk and Yuan 2009).
The sum over ranks of the gradients of the local loss sums is the gradient of the global sum: ∇l = Σ_r ∇l_r.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sheaf.parallel.ranks import peers

BUCKET_BYTES = 16 * 2**20  # large enough for bandwidth, small enough that several are under way in a backward


@dataclass
class Bucket:
    """flat: the gradients of some parameters, end to end. waiting: how many of them this step still owes."""

    flat: Tensor
    parameters: int
    waiting: int = 0
    work: dist.Work | None = field(default=None)


class Gradients:
    """The gradient buffers of one model on one rank.

    A step is: any number of backward passes, `expect()` before the last of them, `finish()` after it, then the
    gradients are the global sum on every rank; `zero()` starts the next. Called by every rank, every step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: int, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.world = world
        self.buckets: list[Bucket] = []
        self.waited_seconds = 0.0
        self._expecting = False
        self._next = 0
        for group in _grouped(list(parameters), bucket_bytes):
            self._add_bucket(group)

    def _add_bucket(self, parameters: list[nn.Parameter]) -> None:
        flat = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float32, device=parameters[0].device)
        bucket = Bucket(flat, len(parameters))
        self.buckets.append(bucket)
        start = 0
        for parameter in parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            if self.world > 1:
                parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._arrived(bucket))

    @property
    def bytes_sent(self) -> int:
        """What this rank sends in a step: 2·(N-1)/N of the gradients' bytes (ring all-reduce)."""
        total = sum(bucket.flat.nbytes for bucket in self.buckets)
        return total * 2 * (self.world - 1) // self.world

    def expect(self) -> None:
        """The next backward pass is this step's last: send each bucket as soon as it is full."""
        for bucket in self.buckets:
            bucket.waiting = bucket.parameters
        self._expecting = self.world > 1

    def finish(self) -> None:
        """Send what was not sent and wait until all buckets are summed. The wait is counted in `waited_seconds`."""
        self._expecting = False
        if self.world > 1:
            start = time.perf_counter()
            for bucket in self.buckets[self._next :]:
                self._send(bucket)
            for bucket in self.buckets:
                if bucket.work is not None:
                    with peers():
                        bucket.work.wait()
                    bucket.work = None
            self.waited_seconds += time.perf_counter() - start
        self._next = 0

    def zero(self) -> None:
        for bucket in self.buckets:
            bucket.flat.zero_()

    def norm(self) -> Tensor:
        """Euclidean norm of all gradients together, float64 on the device (no synchronisation)."""
        squares = [torch.linalg.vector_norm(bucket.flat).double().square() for bucket in self.buckets]
        return torch.stack(squares).sum().sqrt()

    def scale(self, factor: Tensor | float) -> None:
        for bucket in self.buckets:
            bucket.flat.mul_(factor)

    def _arrived(self, bucket: Bucket) -> None:
        if not self._expecting:
            return
        bucket.waiting -= 1
        while self._next < len(self.buckets) and self.buckets[self._next].waiting == 0:
            self._send(self.buckets[self._next])
            self._next += 1

    def _send(self, bucket: Bucket) -> None:
        with peers():
            bucket.work = dist.all_reduce(bucket.flat, op=dist.ReduceOp.SUM, async_op=True)


def _grouped(parameters: list[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Parameters from the last to the first, cut into groups of about bucket_bytes."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = 4 * parameter.numel()
        if not groups or size > room:
            groups.append([])
            room = bucket_bytes
        groups[-1].append(parameter)
        room -= size
    return groups
