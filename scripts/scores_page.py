"""Write the tables of docs/scores.md from corpus/signals.py, so that they cannot go stale.

Use: python scripts/scores_page.py          (a test fails while the page is not what this writes)
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from sheaf.corpus.signals import SIGNALS, Signal

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scores.md"
BLOCK = re.compile(r"(<!-- begin signals [^\n]*-->\n).*?(<!-- end signals -->)", re.S)


def page() -> str:
    """The page with its tables as they should be."""
    tables = "\n\n".join(_table(paper, list(several)) for paper, several in groupby(_by_paper(), lambda s: s.paper))
    return BLOCK.sub(lambda found: f"{found[1]}\n{tables}\n\n{found[2]}", PAGE.read_text(encoding="utf-8"))


def _by_paper() -> list[Signal]:
    order = list(dict.fromkeys(signal.paper for signal in SIGNALS))
    return sorted(SIGNALS, key=lambda signal: order.index(signal.paper))


def _table(paper: str, signals: list[Signal]) -> str:
    bounds = any(signal.bound for signal in signals)
    head = ("signal", "type", "meaning", *(["the paper keeps"] if bounds else []))
    rows = [
        (f"`{s.name}`", str(s.type).replace("double", "float64"), s.meaning, *([s.bound] if bounds else []))
        for s in signals
    ]
    lines = [head, tuple("---" for _ in head), *rows]
    return f"### {paper[0].upper()}{paper[1:]}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
