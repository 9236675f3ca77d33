"""One of three ranks that sum the same gradients in every way, some steps long; what comes of it, for its test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sheaf.parallel.buckets import Buckets
from sheaf.parallel.data import Gradients
from sheaf.parallel.mesh import Mesh
from sheaf.parallel.ranks import join
from sheaf.recipe import Communication, Layout

SHAPES = {"matrix": (96, 64), "vector": (64,), "wide": (32, 256)}
WAYS = {
    "fp32": Communication(),
    "bf16": Communication(gradients="bf16"),
    "int8": Communication(gradients="int8"),
    "two-bit": Communication(gradients="two-bit"),
    "powersgd": Communication(gradients="powersgd", rank=4),
    "topk": Communication(gradients="topk", share=0.05),
}
STEPS = 12


def gradients_of(rank: int, step: int) -> dict[str, Tensor]:
    """Of low rank with noise, as real ones are; those of one rank change little from step to step."""
    found: dict[str, Tensor] = {}
    for name, shape in SHAPES.items():
        steady = torch.Generator().manual_seed(rank + 10 * len(name))
        if len(shape) == 2:
            whole = torch.randn(shape[0], 3, generator=steady) @ torch.randn(3, shape[1], generator=steady)
        else:
            whole = torch.randn(shape, generator=steady)
        noise = torch.Generator().manual_seed(1000 * step + rank)
        found[name] = whole + 0.3 * torch.randn(shape, generator=noise)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Tensor] = {}
    with join() as ranks:
        group = Mesh(ranks, Layout(data=ranks.world)).group("data", "context")
        for way, how in WAYS.items():
            parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
            gradients = Gradients(parameters, group, how, Buckets(30_000))
            for step in range(STEPS):
                gradients.expect(1)
                with torch.no_grad():
                    for name, value in gradients_of(ranks.rank, step).items():
                        grad = parameters[name].grad
                        assert grad is not None
                        grad += value
                gradients.finish()
                for name, gradient, kept, _ in gradients.parts():
                    found[f"{way}.{step}.sum.{name}"] = gradient.clone()
                    if kept is not None:
                        found[f"{way}.{step}.kept.{name}"] = kept.clone()
                gradients.zero()
    save_file(found, folder / f"{ranks.rank}.safetensors")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]))
