"""What a step was made of, in figures for the journal and the report: a function of the order and the step alone.

Cost: one look-up of the step's samples, some 50 microseconds, and a split of them over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sheaf.order.balance import imbalance
from sheaf.order.order import Order


@dataclass(frozen=True)
class StepFigures:
    """source_tokens: inputs of each source that the step has any of. efficiency: inputs over token positions, before
    passes are filled up. balance: work of the dearest rank over the mean (by speed); 1 is perfect. weights: shares
    asked for from this step on, summing to 1; None where they go on as before."""

    source_tokens: dict[str, int]
    efficiency: float
    balance: float
    weights: dict[str, float] | None

    def to_json(self) -> dict[str, Any]:
        """As in a line of the journal; ratios to five digits."""
        weights = {} if self.weights is None else {"weights": self.weights}
        ratios = {"packing": round(self.efficiency, 5), "balance": round(self.balance, 5)}
        return {"source_tokens": self.source_tokens, **ratios, **weights}


def step_figures(order: Order, step: int, world: int = 1, speeds: tuple[float, ...] | None = None) -> StepFigures:
    """The figures of a global step that `world` ranks make. Raises IndexError beyond the last step."""
    samples = order.samples(step)
    rows = order.rows(samples)
    tokens = order.pack.sample_tokens[rows].astype(np.int64)
    by_source = np.bincount(samples.source, tokens, len(order.source_names)).astype(np.int64)
    changed = step == 0 or any(change.at == step for change in order.curriculum)
    return StepFigures(
        {name: n for name, n in zip(order.source_names, by_source.tolist(), strict=True) if n},
        float(tokens.sum() / order.positions(rows).sum()),
        imbalance(order.cost(rows), order.split_rows(rows, world, speeds), speeds),
        order.weights(step) if changed else None,
    )
