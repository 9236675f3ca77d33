"""Data parallel: the gradients of all ranks of a group summed, in buckets, while the backward pass is still running.

Gradients live in a few flat fp32 buffers ("buckets") and every parameter's `.grad` is a view into one, so nothing is
copied before or after sending, zeroing is one fill a bucket, and a parameter that got no gradient has zeros on every
rank. Parameters fill buckets from the last to the first, which is about the order in which the backward finishes them.
A hook counts the gradients of a step's backward passes down; a bucket that owes none is summed asynchronously, always
in bucket order, so that ranks never wait for each other crosswise. What is left, `finish` sends.

Cost: memory 4 bytes a parameter (the gradients themselves). Network: a ring all-reduce sends 2·(N-1)/N times the
buckets' bytes from every rank in a step, however many micro-batches there are (Patarasuk and Yuan 2009).
The sum over ranks of the gradients of the local loss sums is the gradient of the global sum: ∇l = Σ_r ∇l_r.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sheaf.parallel.collectives import traffic, waiting
from sheaf.parallel.mesh import Group
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
    """The gradient buffers of some parameters on one rank of the group that holds copies of them.

    A step is: `expect` the number of its backward passes, the passes, `finish`; then the gradients are the group's sum
    on every rank. `zero` starts the next. Called by every rank of the group, every step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], group: Group, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.group = group
        self.buckets: list[Bucket] = []
        for some in _grouped(list(parameters), bucket_bytes):
            self._add_bucket(some)
        self._next = len(self.buckets)  # the first one that is not sent yet

    def _add_bucket(self, parameters: list[nn.Parameter]) -> None:
        flat = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float32, device=parameters[0].device)
        bucket = Bucket(flat, len(parameters))
        self.buckets.append(bucket)
        start = 0
        for parameter in parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            if self.group.size > 1:
                parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._arrived(bucket))

    def expect(self, passes: int) -> None:
        """The next step has this many backward passes: send each bucket as soon as it has all their gradients."""
        for bucket in self.buckets:
            bucket.waiting = bucket.parameters * passes
        self._next = 0

    def finish(self) -> None:
        """Send what was not sent and wait until all buckets are summed. The wait is counted in `traffic`."""
        if self.group.size > 1:
            with waiting(0):
                for bucket in self.buckets[self._next :]:
                    self._send(bucket)
                for bucket in self.buckets:
                    if bucket.work is not None:
                        bucket.work.wait()
                        bucket.work = None
        self._next = len(self.buckets)

    def zero(self) -> None:
        for bucket in self.buckets:
            bucket.flat.zero_()

    def scale(self, factor: Tensor | float) -> None:
        for bucket in self.buckets:
            bucket.flat.mul_(factor)

    def _arrived(self, bucket: Bucket) -> None:
        bucket.waiting -= 1
        while self._next < len(self.buckets) and self.buckets[self._next].waiting == 0:
            self._send(self.buckets[self._next])
            self._next += 1

    def _send(self, bucket: Bucket) -> None:
        with peers():
            bucket.work = dist.all_reduce(bucket.flat, group=self.group.handle, async_op=True)
        traffic.bytes += bucket.flat.nbytes * 2 * (self.group.size - 1) // self.group.size


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
