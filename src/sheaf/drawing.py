"""Pieces that verbs draw with: tables, lines and places. Every string is shown with its control characters escaped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sheaf.console import printable

Json = dict[str, Any]


def table(columns: list[str], rows: Iterable[tuple[str, ...]]) -> Table:
    """Columns whose name begins with > hold numbers, aligned to the right."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        drawn.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(text(cell) for cell in row))
    return drawn


def origin(about: Json) -> str:
    """Where something lies: source: uri ! member (locator), and whether that was verified."""
    member = f" ! {about['member']}" if about.get("member") else ""
    there = place(about.get("locator") or {})
    verdict = {None: "", True: " – verified", False: f" – NOT what it was: {about.get('why', 'other text')}"}
    where = f"{about['source']}: {about['uri']}{member}" + (f" {there}" if there else "")
    return where + verdict[about.get("verified")]


def place(locator: Json) -> str:
    """(bytes 0 to 17), (sheet Q1, row 7), (key id=482, row 481)"""
    return f"({', '.join(f'{name} {_value(value)}' for name, value in locator.items())})" if locator else ""


def text(value: object) -> Text:
    return Text(printable(str(value)))


def line(value: str, style: str = "") -> Text:
    return Text(printable(value).replace("\n", "\\n"), style=style)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
