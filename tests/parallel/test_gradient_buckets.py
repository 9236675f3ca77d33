"""Gradients in flat buckets: same numbers as autograd's own, and the sum over real ranks."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

from sheaf.parallel.collectives import traffic
from sheaf.parallel.data import Gradients
from sheaf.parallel.mesh import Group


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3))


def loss(net: nn.Module, seed: int) -> torch.Tensor:
    return net(torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))).square().sum()


@pytest.mark.parametrize("bucket_bytes", [1, 100, 10**6])
def test_buckets_hold_what_autograd_computes_and_zero_clears_it(bucket_bytes: int) -> None:
    plain, bucketed = model(), model()
    gradients = Gradients(bucketed.parameters(), Group(1, 0, (0,)), bucket_bytes)
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
    gradients = Gradients(net.parameters(), Group(2, rank, (0, 1), dist.group.WORLD), bucket_bytes=100)
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
