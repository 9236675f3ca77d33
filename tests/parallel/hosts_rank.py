"""One of four ranks on two hosts: sums the same gradients as one group, and host by host; tells what the link bore."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sheaf.parallel.buckets import Buckets
from sheaf.parallel.data import Gradients
from sheaf.parallel.mesh import Hosts, Mesh
from sheaf.parallel.ranks import join
from sheaf.recipe import Communication, Layout

NUMBERS, STEPS = 400_000, 3
WAYS = {
    "fp32": Communication(),
    "int8": Communication(gradients="int8"),
    "topk": Communication(gradients="topk", share=0.1),
}


def link_bytes() -> int:
    """Sent over the link by all of this host."""
    return int(Path(f"/sys/class/net/{os.environ['GLOO_SOCKET_IFNAME']}/statistics/tx_bytes").read_text())


def gradient_of(rank: int, step: int) -> Tensor:
    return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(100 * step + rank))


def summed(mesh: Mesh, how: Communication, hosts: Hosts | None) -> dict[str, object]:
    weight = nn.Parameter(torch.zeros(NUMBERS))
    gradients = Gradients({"weight": weight}, mesh.sums("cut"), how, Buckets(), hosts)
    dist.barrier()
    before, lack = link_bytes(), torch.zeros(NUMBERS)
    dist.barrier()
    for step in range(STEPS):
        gradients.expect(1)
        with torch.no_grad():
            weight.grad += gradient_of(mesh.ranks.rank, step)
        gradients.finish()
        lack += torch.stack([gradient_of(rank, step) for rank in range(4)]).sum(0) - weight.grad
        total = weight.grad.view(torch.int32).sum(dtype=torch.int64).item()
        gradients.zero()
    dist.barrier()
    sent = link_bytes() - before
    dist.barrier()
    ((_, _, kept, _),) = gradients.parts()
    everywhere = torch.zeros(NUMBERS) if kept is None else kept.clone()
    dist.all_reduce(everywhere)
    return {"bytes": sent, "bits": total, "keeps": kept is not None, "off": (everywhere - lack).abs().max().item()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join() as ranks:
        mesh = Mesh(ranks, Layout(data=4))
        hosts = mesh.hosts("cut")
        assert hosts is not None
        told = {"inside": hosts.inside.members, "between": hosts.between and hosts.between.members}
        for way, how in WAYS.items():
            told[f"{way} by host"], told[f"{way} flat"] = summed(mesh, how, hosts), summed(mesh, how, None)
    Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(told))
