"""Machines that one does not have: published figures of accelerators, and what of them training reaches.

Peak rates (dense bf16), memory and link speeds are those of the makers' datasheets, which each entry names. What is
reached of them is no datasheet's: one set of shares for each generation, fitted to runs that others have published
(`bench/plan_published.py` prints every one of them beside the forecast, and says which were fitted to).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sheaf.errors import UsageError
from sheaf.parallel.links import Link, Machine
from sheaf.parallel.rates import Rates

LATENCY = 20e-6  # seconds of a small collective over NVLink or a fabric with RDMA
# Of what a link carries in one direction: large collectives of NCCL reach about so much (nccl-tests, bus bandwidth).
LINK_SHARE = 0.9
MEMORY_SHARE = 0.7  # of the memory's bandwidth that an optimiser's elementwise passes reach
HIDES = 0.35  # of a pass behind which gathering hides, as FSDP fetches the next block ahead


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator in its usual host. peak: dense FLOP/s in bf16. link, network: bytes/s of one of them in
    one direction, to others in its host and in other hosts. reached, attention: shares of the peak that the products
    of layers, and scores and values, come to. error: of a step's seconds, as a share."""

    name: str
    peak: float
    memory_bytes: float
    memory_bytes_per_second: float
    link: float
    network: float
    per_node: int
    reached: float
    attention: float
    error: float
    source: str


H100 = Accelerator(
    "h100", 989e12, 80e9, 3.35e12, 450e9, 50e9, 8, 0.52, 0.21, 0.25,
    "NVIDIA H100 Tensor Core GPU datasheet, SXM5; host: DGX H100 datasheet (NVLink 900 GB/s both ways, 400 Gb/s a GPU)",
)  # fmt: skip
TABLE: dict[str, Accelerator] = {
    one.name: one
    for one in (
        H100,
        replace(
            H100, name="h200", memory_bytes=141e9, memory_bytes_per_second=4.8e12, error=0.3,
            source="NVIDIA H200 Tensor Core GPU datasheet, SXM; reached: as of the H100, whose arithmetic it has",
        ),
        Accelerator(
            "a100", 312e12, 80e9, 2.039e12, 300e9, 25e9, 8, 0.66, 0.35, 0.25,
            "NVIDIA A100 80GB datasheet, SXM4; host: DGX A100 datasheet (NVLink 600 GB/s both ways, 200 Gb/s a GPU)",
        ),
        Accelerator(
            "l40s", 362e12, 48e9, 0.864e12, 32e9, 12.5e9, 8, 0.45, 0.2, 0.4,
            "NVIDIA L40S datasheet (PCIe 4.0 x16, no NVLink); network: 100 Gb/s a GPU assumed; reached: assumed, from"
            " its memory's bandwidth",
        ),
    )
}  # fmt: skip
# They are named so that whoever asks gets an answer: torch on XLA is not among what Sheaf runs on.
UNSUPPORTED = {
    "tpu-v4": "Google TPU", "tpu-v5e": "Google TPU", "tpu-v5p": "Google TPU", "tpu-v6e": "Google TPU",
    "trainium": "AWS Trainium", "trainium2": "AWS Trainium", "gaudi2": "Intel Gaudi", "gaudi3": "Intel Gaudi",
}  # fmt: skip


def accelerator(name: str) -> Accelerator:
    """By its name in the table. Raises UsageError for one that is not there, or that Sheaf does not run on."""
    wanted = name.lower()
    if wanted in UNSUPPORTED:
        raise UsageError(
            f"Sheaf does not train on {name}",
            why=f"{UNSUPPORTED[wanted]}s are not reached through torch's CPU or CUDA code",
            fix=f"choose one of {', '.join(TABLE)}",
        )
    if wanted not in TABLE:
        raise UsageError(
            f"there is no machine '{name}' in the table",
            fix=f"choose one of {', '.join(TABLE)}; without --machine this one is measured",
        )
    return TABLE[wanted]


def machine_of(one: Accelerator, ranks: int) -> Machine:
    """So many of them, in as many hosts as need be, as the cost model takes it."""
    products = one.peak * one.reached
    rates = Rates(
        layers=products,
        attention=one.peak * one.attention,
        head=products,
        muon=products,
        update=one.memory_bytes_per_second * MEMORY_SHARE,
        shard_hides=HIDES,
    )
    host, hosts = Link(LINK_SHARE * one.link, LATENCY), Link(LINK_SHARE * one.network * one.per_node, LATENCY)
    return Machine(rates, host, hosts, min(ranks, one.per_node))
