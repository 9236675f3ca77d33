"""Gradients in flat buckets: same numbers as autograd's own, and the sum over real ranks."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from sheaf.parallel.buckets import MIB, Buckets, chosen
from sheaf.parallel.collectives import traffic
from sheaf.parallel.data import Gradients
from sheaf.parallel.links import Link
from sheaf.parallel.mesh import Group
from sheaf.recipe import Communication


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))


def loss(net: nn.Module, seed: int) -> torch.Tensor:
    return net(torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))).square().sum()


@pytest.mark.parametrize("bucket_bytes", [1, 100, 10**6])
def test_buckets_hold_what_autograd_computes_and_zero_clears_it(bucket_bytes: int) -> None:
    plain, bucketed = model(), model()
    gradients = Gradients(dict(bucketed.named_parameters()), Group(1, 0, (0,)), buckets=Buckets(bucket_bytes))
    for _ in range(2):
        plain.zero_grad()
        for seed in (1, 2):
            loss(plain, seed).backward()
            loss(bucketed, seed).backward()
        gradients.finish()
        for a, b in zip(plain.parameters(), bucketed.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        gradients.zero()
        assert all(not p.grad.any() for p in bucketed.parameters())


def _rank(rank: int, port: int, results: torch.multiprocessing.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    net = model()
    gradients = Gradients(dict(net.named_parameters()), Group(2, rank, (0, 1), dist.group.WORLD), buckets=Buckets(100))
    # Rank 0 has three micro-batches, rank 1 none: it joins with zeros.
    seeds = (1, 2, 3) if rank == 0 else ()
    gradients.expect(len(seeds))
    before = traffic.bytes
    for seed in seeds:
        loss(net, seed).backward()
    gradients.finish()
    results.put((rank, [p.grad.tolist() for p in net.parameters()], traffic.bytes - before))
    dist.destroy_process_group()


def test_ranks_with_unequal_work_end_with_the_same_global_sum() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_rank, (port, results), nprocs=2)
    by_rank = {rank: (sums, sent) for rank, sums, sent in (results.get() for _ in range(2))}
    alone = model()
    for seed in (1, 2, 3):
        loss(alone, seed).backward()
    assert by_rank[0][0] == by_rank[1][0]
    for got, parameter in zip(by_rank[0][0], alone.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(got), parameter.grad)
    assert by_rank[0][1] == 4 * sum(p.numel() for p in alone.parameters())  # 2·(2-1)/2 of the gradients' bytes


def test_buckets_are_larger_where_messages_are_dear_or_little_is_sent_of_them() -> None:
    exact, thin = Communication(), Communication(gradients="int8")
    fast, slow = Link(1e9, 0.0002), Link(2.5e6, 0.05)
    sizes = [chosen(link, 68e6, how, 2).bytes // MIB for link in (fast, slow) for how in (exact, thin)]
    assert sizes == [4, 8, 2, 4]
    assert chosen(Link(1e3, 1e-9), 1e3, exact, 2).bytes == MIB
    assert chosen(Link(1e12, 10), 1e12, exact, 2).bytes == 64 * MIB
