"""Personal data and secrets in texts: find them, count them, put marks in their place.

Stands beside the flow, because whatever shows a piece of the data (reports, refusals, surveys) must hide them.
"""

from __future__ import annotations

from sheaf.privacy.find import FINDINGS, find
from sheaf.privacy.mask import (
    LONGEST,
    Masked,
    counts,
    counts_by_row,
    excerpt,
    hidden,
    hidden_column,
    masked,
    masked_text,
)
from sheaf.privacy.plain import without_secrets
from sheaf.privacy.rules import KINDS

__all__ = [
    "FINDINGS",
    "KINDS",
    "LONGEST",
    "Masked",
    "counts",
    "counts_by_row",
    "excerpt",
    "find",
    "hidden",
    "hidden_column",
    "masked",
    "masked_text",
    "without_secrets",
]
