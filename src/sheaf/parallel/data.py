"""Data parallel: the gradients of all ranks of a group summed, in buckets, while the backward pass is still running.

Gradients live in a few flat fp32 buffers ("buckets") and every parameter's `.grad` is a view into one, so nothing is
copied before or after sending, zeroing is one fill a bucket, and a parameter that got no gradient has zeros on every
rank. Parameters fill buckets from the last to the first, which is about the order in which the backward finishes them,
and after the first step in that very order (`buckets.py`).
A hook counts the gradients of a step's backward passes down; a bucket that owes none is handed to the thread that sums
(`wire.py`), always in bucket order, so that ranks never wait for each other crosswise. What is left, `finish` hands in.

Cost: memory 4 bytes a parameter (the gradients themselves), and 4 more where a way of summing keeps what it did not
send. Network: as the way of summing says (`reduce.py`), once a step, however many micro-batches there are.
The sum over ranks of the gradients of the local loss sums is the gradient of the global sum: ∇l = Σ_r ∇l_r.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sheaf.parallel.buckets import Buckets
from sheaf.parallel.collectives import traffic, waiting
from sheaf.parallel.hosts import HostSum
from sheaf.parallel.mesh import Group, Hosts
from sheaf.parallel.reduce import BucketSum, bucket_length, sum_of
from sheaf.parallel.wire import Line, Moved, Wire
from sheaf.recipe import Communication

EXACT, UNKNOWN = Communication(), Buckets()


@dataclass
class Bucket:
    """flat: the gradients of the parameters, end to end. waiting: how many of them this step still owes."""

    flat: Tensor
    parameters: dict[str, nn.Parameter]
    sum: BucketSum
    waiting: int = 0
    work: Future[Moved] | None = field(default=None)

    def parts(self, flat: Tensor) -> Generator[tuple[str, Tensor]]:
        """Each parameter's part of a buffer that is laid out as this bucket."""
        start = 0
        for name, parameter in self.parameters.items():
            yield name, flat[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()


class Gradients:
    """The gradient buffers of some parameters on one rank of the group that holds copies of them.

    A step is: `expect` the number of its backward passes, the passes, `finish`; then the gradients are the group's sum
    on every rank. `zero` starts the next. Called by every rank of the group, every step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        group: Group,
        how: Communication = EXACT,
        buckets: Buckets = UNKNOWN,
        hosts: Hosts | None = None,
    ) -> None:
        """hosts: how the group lies on them, where they hold several of its ranks."""
        self.group, self.hosts, self.how = group, hosts, how if group.size > 1 else EXACT
        self.buckets: list[Bucket] = []
        self.parameters, self._bucket_bytes = dict(parameters), buckets.bytes
        self._line = Line("gradients", next(iter(parameters.values())).device)
        self._of: dict[str, Bucket] = {}
        self._arrivals: dict[str, None] = {}
        known = [name for name in buckets.order if name in parameters]
        self._is_settled, self._steps = bool(known) or group.size == 1, 0
        self._lay_out(known)
        self._next = len(self.buckets)  # the first one that is not sent yet
        if group.size > 1:
            for name, parameter in parameters.items():
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._arrived(name))

    def _lay_out(self, order: Sequence[str]) -> None:
        """Fill buckets in this order, then with what it does not name from the last to the first."""
        order = [*order, *(name for name in reversed(list(self.parameters)) if name not in order)]
        before = {name: (kept, basis) for name, _, kept, basis in self.parts()}
        self.buckets = [self._bucket(names) for names in _cut(order, self.parameters, self._bucket_bytes)]
        self._of = {name: bucket for bucket in self.buckets for name in bucket.parameters}
        for name, gradient, *now in self.parts():
            self.parameters[name].grad = gradient
            for old, new in zip(before.get(name, ()), now, strict=False):
                if old is not None and new is not None:
                    new.copy_(old)

    def _bucket(self, names: Sequence[str]) -> Bucket:
        parameters = {name: self.parameters[name] for name in names}
        numbers, device = sum(p.numel() for p in parameters.values()), parameters[names[0]].device
        flat = torch.zeros(bucket_length(numbers, self.how, self.places), dtype=torch.float32, device=device)
        return Bucket(flat, parameters, self._sum_of(flat, parameters))

    def _sum_of(self, flat: Tensor, parameters: Mapping[str, nn.Parameter]) -> BucketSum:
        found = sum_of(self.how, flat, [tuple(p.shape) for p in parameters.values()])
        return found if self.hosts is None else HostSum(self.hosts, found)

    @property
    def place(self) -> int:
        """This rank's among those that keep what a lossy way does not send; -1 if it keeps nothing."""
        if self.hosts is None:
            return self.group.rank
        return -1 if self.hosts.between is None else self.hosts.between.rank

    @property
    def places(self) -> int:
        return self.group.size if self.hosts is None else self.hosts.count

    def expect(self, passes: int) -> None:
        """The next step has this many backward passes: send each bucket as soon as it has all their gradients."""
        if self._steps == 1 and not self._is_settled:
            self._lay_out(self.order())
            self._is_settled = True
        self._steps += 1
        for bucket in self.buckets:
            bucket.waiting = len(bucket.parameters) * passes
        self._next = 0

    def finish(self) -> None:
        """Send what was not sent and wait until all buckets are summed. What was sent, the wait, and what of the
        sending took place before it, behind the backward pass, is counted in `traffic`."""
        if self.group.size > 1:
            begin = time.perf_counter()
            with waiting(0):
                for bucket in self.buckets[self._next :]:
                    self._send(bucket)
                for bucket in self.buckets:
                    if bucket.work is not None:
                        moved, bucket.work = bucket.work.result(), None
                        traffic.bytes += moved.bytes
                        traffic.hidden += moved.seconds_before(begin)
            self._line.join_stream()
        self._next = len(self.buckets)

    def order(self) -> tuple[str, ...]:
        """In which parameters fill buckets: known before, or that in which the group's first rank saw the gradients of
        the first step arrive. Called by every rank."""
        if self._is_settled or not self._steps:
            return tuple(self._of) if self._is_settled else ()
        names = sorted(self.parameters)
        arrived = [*self._arrivals, *(name for name in names if name not in self._arrivals)]
        places = torch.tensor([names.index(name) for name in arrived], device=self.buckets[0].flat.device)
        with waiting(0):
            dist.broadcast(places, self.group.members[0], group=self.group.handle)
        return tuple(names[place] for place in places.tolist())

    def zero(self) -> None:
        for bucket in self.buckets:
            bucket.flat.zero_()

    def scale(self, factor: Tensor | float) -> None:
        for bucket in self.buckets:
            bucket.flat.mul_(factor)

    def parts(self) -> Generator[tuple[str, Tensor, Tensor | None, Tensor | None]]:
        """Of each parameter: its gradient, and what a lossy way of summing keeps of it and has learned."""
        for bucket in self.buckets:
            kept = bucket.sum.kept
            rests = bucket.parts(kept) if kept is not None else ((name, None) for name in bucket.parameters)
            for number, ((name, gradient), (_, rest)) in enumerate(zip(bucket.parts(bucket.flat), rests, strict=True)):
                yield name, gradient, rest, bucket.sum.bases.get(number)

    def forget(self) -> None:
        """Begin anew, as before the first step."""
        for bucket in self.buckets:
            bucket.sum = self._sum_of(bucket.flat, bucket.parameters)

    def _arrived(self, name: str) -> None:
        if not self._is_settled:
            self._arrivals.pop(name, None)
            self._arrivals[name] = None  # last, so far
        self._of[name].waiting -= 1
        while self._next < len(self.buckets) and self.buckets[self._next].waiting == 0:
            self._send(self.buckets[self._next])
            self._next += 1

    def _send(self, bucket: Bucket) -> None:
        bucket.work = self._line.submit(lambda: self._sum(bucket))

    def _sum(self, bucket: Bucket) -> Moved:
        wire = Wire(self.group)
        bucket.sum(bucket.flat, wire)
        return wire.moved


def _cut(order: Sequence[str], parameters: Mapping[str, nn.Parameter], bucket_bytes: int) -> list[list[str]]:
    """Names in order, cut into groups of at most bucket_bytes, or of one parameter."""
    groups: list[list[str]] = []
    room = 0
    for name in order:
        size = 4 * parameters[name].numel()
        if not groups or size > room:
            groups.append([])
            room = bucket_bytes
        groups[-1].append(name)
        room -= size
    return groups
