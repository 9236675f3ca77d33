"""Published throughput beside what `sheaf plan` forecasts for the same model, layout, batch and machines.

One set of constants for all rows: those of `sheaf/forecast/machines.py`, and below those of fp8, of torchtitan's hosts
and of Megatron's overlap. They were fitted to these very rows (seven numbers of the H100 to 24 rows, two of the A100 to
five): the table says how well one simple model explains them, and is no proof of what it says of others. Every input of
a row is in `published_runs.py`. Nothing is measured here, and nothing allocated: it takes a second.

Use: python bench/plan_published.py
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from published_runs import PUBLISHED, TITAN, Published
from sheaf.forecast.machines import accelerator, machine_of
from sheaf.parallel.cost import step_seconds
from sheaf.parallel.layout import Facts, describe, ranks_of
from sheaf.parallel.links import Machine

FP8_PEAK, FP8_REACHED = 1979e12, 0.41  # H100 datasheet; scaling and casts take their part

OVERLAP = 0.9  # of what tensor ranks send, where products and sending are woven together
# "The actual peak TFLOPs number is between SXM and NVL" (its footnote 2): 989 and 835 by the datasheet; 500 W, HBM2e.
TITAN_PEAK, TITAN_MEMORY = 912e12, 2.4e12


def forecast(row: Published) -> float:
    """Tokens a second of one GPU."""
    facts = Facts(
        config=row.config,
        sequence_length=row.length,
        batch=row.batch,
        micro_tokens=row.micro * row.length,
        compile=True,
        packing="concatenate",
        memory_bytes=accelerator(row.machine).memory_bytes,
        again=row.again,
    )
    ranks = ranks_of(row.layout)
    return row.batch * row.length / step_seconds(row.layout, facts, machine(row)) / ranks


def machine(row: Published) -> Machine:
    one = accelerator(row.machine)
    if row.source == TITAN:
        one = replace(one, peak=TITAN_PEAK, memory_bytes_per_second=TITAN_MEMORY)
    found = machine_of(one, ranks_of(row.layout))
    rates = found.rates
    if row.fp8:
        rates = replace(rates, layers=FP8_PEAK * FP8_REACHED)
    if "tensor" in row.overlapped:
        rates = replace(rates, tensor_hides=OVERLAP)
    if "data" in row.overlapped:
        rates = replace(rates, data_hides=1.0)
    return replace(found, rates=rates)


def main() -> None:
    print(
        "| source | model | GPUs | layout | length | batch | micro | again | products | published | forecast | ratio |"
    )
    print("|-|-|-|-|-|-|-|-|-|-|-|-|")
    for row in PUBLISHED:
        here = forecast(row)
        words = (
            row.source.partition(" ")[0], row.name,
            f"{ranks_of(row.layout)} {row.machine}", describe(row.layout), row.length, row.batch, row.micro, row.again,
            "fp8" if row.fp8 else "bf16", f"{row.tokens_per_second:,.0f}", f"{here:,.0f}",
            f"{here / row.tokens_per_second:.2f}",
        )  # fmt: skip
        print("| " + " | ".join(map(str, words)) + " |")


if __name__ == "__main__":
    main()
