"""The page of scores says what the table of signals says."""

from __future__ import annotations

import runpy
from pathlib import Path

from sheaf.corpus.signals import SIGNALS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_scores_is_what_the_table_of_signals_says() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "scores_page.py"))["page"]()
    assert (ROOT / "docs" / "scores.md").read_text(encoding="utf-8") == written, "run: python scripts/scores_page.py"
    assert all(f"| `{signal.name}` |" in written for signal in SIGNALS)


def test_a_signal_is_named_once() -> None:
    names = [signal.name for signal in SIGNALS]
    assert len(names) == len(set(names))
