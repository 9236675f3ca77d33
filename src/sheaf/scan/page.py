"""The survey as one HTML file: what lies where, what is wrong with it, and what to write into the recipe.

Like the report it needs no network and no script, and every value is escaped: names and excerpts are hostile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sheaf.console import duration, size
from sheaf.files import write_file
from sheaf.report.build import page_template
from sheaf.report.charts import Part, legend, short_number, stacked

COLOURS = (1, 2, 3, 4, 5, 6)
MOST_TYPES = 5  # of all sources together that have a colour; the others are one


def write_page(data: dict[str, Any], path: Path) -> None:
    """data: what `scan` returns."""
    write_file(path, render(data).encode())


def render(data: dict[str, Any]) -> str:
    bar, key = _types(data["sources"])
    return page_template("sheaf.scan", "page.html").render(
        data=data, title="survey of the sources", figures=_figures(data), types=bar, types_legend=key
    )


def _figures(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Headline figures: (value, what it is)."""
    sample, forecast = data["sample"], data["forecast"]
    records = sum(s["records"]["value"] for s in data["sources"].values())
    return [
        (f"{sample['of_items']:,}", "items"),
        (size(sample["of_bytes"]), "in them"),
        (short_number(records), "records, about"),
        (short_number(forecast["tokens"]["value"]), "tokens, about"),
        (duration(forecast["seconds"]["value"]), f"to prepare on {forecast['workers']} processes, about"),
        (size(forecast["disk_bytes"]["value"]), "of disk for that, about"),
    ]


def _types(sources: dict[str, Any]) -> tuple[Any, Any]:
    """Bytes by type, a bar a source."""
    total: dict[str, int] = {}
    for source in sources.values():
        for media, known in source["types"].items():
            total[media] = total.get(media, 0) + known["bytes"]
    largest = sorted(total, key=lambda media: -total[media])[:MOST_TYPES]
    parts = [Part(media, colour) for media, colour in zip([*largest, "others"], COLOURS, strict=False)]
    rows: list[tuple[str, list[float]]] = []
    for name, source in sources.items():
        of = {media: float(known["bytes"]) for media, known in source["types"].items()}
        shown = [of.pop(media, 0.0) for media in largest]
        rows.append((name, [*shown, sum(of.values())]))
    return stacked(rows, parts, title="Bytes by type and source"), legend(parts)
