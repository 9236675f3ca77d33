"""The survey as one HTML file.

It answers, in this order: what is here, what would be lost and why, what is there more than once, what is private, what
to write into the recipe, and what it will cost. Like the report it needs no network and no script, and every value is
escaped: names and excerpts are hostile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sheaf.console import duration, size
from sheaf.files import write_file
from sheaf.formats.reasons import explain
from sheaf.report.build import page_template
from sheaf.report.charts import Part, legend, short_number, stacked

Json = dict[str, Any]
COLOURS, OTHERS = (1, 2, 3, 4, 5), 0
MOST_TYPES = len(COLOURS)  # of all sources together that have a colour; the others are one
MOST_ROWS = 12  # of a source's types that are not folded away
LEAST_SHARE = 0.005  # of languages and the like: what is rarer is noise, and one "others"
_WORDS = {"zxx": "no language"}
_TYPES = {
    "application/octet-stream": "unknown binary data",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "Word (docx)",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "Excel (xlsx)",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "PowerPoint (pptx)",
    "application/msword": "Word (doc)",
    "application/vnd.ms-excel": "Excel (xls)",
    "application/vnd.ms-powerpoint": "PowerPoint (ppt)",
    "application/vnd.ms-outlook": "Outlook (msg)",
    "application/x-ndjson": "JSON Lines",
    "application/x-ole-encrypted": "encrypted Office document",
    "message/rfc822": "mail message",
    "text/plain": "plain text",
}


def write_page(data: Json, path: Path) -> None:
    """data: what `scan` returns."""
    write_file(path, render(data).encode())


def render(data: Json) -> str:
    bar, key = _types(data["sources"])
    return page_template("sheaf.scan", "page.html", type=type_name, largest=_largest).render(
        data=data,
        title="survey of the sources",
        figures=_figures(data),
        types=bar,
        types_legend=key,
        most=MOST_ROWS,
        losses=list(_losses(data["sources"])),
        copied=list(_copied(data)),
        private=list(_private(data["sources"])),
        proposed=any(group["proposals"] for groups in data["mappings"].values() for group in groups),
        costs=_costs(data["forecast"]),
    )


def type_name(media: str) -> str:
    """A media type as people say it."""
    known = _TYPES.get(media)
    if known is not None:
        return known
    family, _, name = media.partition("/")
    name = name.removeprefix("vnd.").removeprefix("x-")
    if not name:
        return family
    return name if family in ("application", "text") else f"{family}: {name}"


def _figures(data: Json) -> list[tuple[str, str]]:
    """Headline figures: (value, what it is)."""
    sample, forecast, sources = data["sample"], data["forecast"], data["sources"].values()
    records = sum(s["records"]["value"] for s in sources)
    lost = sum(known["bytes"]["value"] for s in sources for known in s["broken"].values())
    return [
        (f"{sample['of_items']:,}", "items"),
        (size(sample["of_bytes"]), "in them"),
        (short_number(records), "records, about"),
        (short_number(forecast["tokens"]["value"]), "tokens, about"),
        (size(lost), "would be lost, about"),
        (duration(forecast["seconds"]["value"]), "to prepare, about"),
    ]


def _types(sources: Json) -> tuple[Any, Any]:
    """Bytes by type, a bar a source that holds any."""
    total: dict[str, int] = {}
    for source in sources.values():
        for media, known in source["types"].items():
            total[media] = total.get(media, 0) + known["bytes"]
    largest = sorted(total, key=lambda media: (-total[media], media))[:MOST_TYPES]
    others = ["others"] if len(total) > MOST_TYPES else []
    parts = [Part(type_name(media), colour) for media, colour in zip(largest, COLOURS, strict=False)]
    parts += [Part(name, OTHERS) for name in others]
    rows: list[tuple[str, list[float]]] = []
    for name, source in sources.items():
        of = {media: float(known["bytes"]) for media, known in source["types"].items()}
        shown = [of.pop(media, 0.0) for media in largest]
        rows.append((name, [*shown, *([sum(of.values())] if others else [])]))
    full = [row for row in rows if any(row[1])]
    return stacked(full, parts, title="Bytes by type and source"), legend(parts)


def _losses(sources: Json) -> Iterator[Json]:
    """By reason and source, those of most bytes first; what its place refused last."""
    broken: list[Json] = [
        {"source": name, "reason": reason, "meaning": explain(reason), **known}
        for name, source in sources.items()
        for reason, known in source["broken"].items()
    ]
    yield from sorted(broken, key=lambda loss: (-loss["bytes"]["value"], -loss["items"]))
    for name, source in sources.items():
        for reason, n in source["refused"].items():
            about = {"source": name, "reason": reason, "meaning": explain(reason)}
            yield {**about, "items": n, "bytes": None, "examples": []}


def _copied(data: Json) -> Iterator[tuple[str, str, Json]]:
    """(source, where its items are too, which share of them)."""
    for name, source in data["sources"].items():
        if source["copies"]["share"]:
            yield name, "the same source", source["copies"]
    for pair in data["between"]:
        first, second = pair["sources"]
        yield first, second, pair["of_first"]
        yield second, first, pair["of_second"]


def _private(sources: Json) -> Iterator[tuple[str, str, Json]]:
    """(kind, source, finds), most first."""
    found = [(kind, name, known) for name, s in sources.items() for kind, known in s["privacy"].items()]
    yield from sorted(found, key=lambda row: -row[2]["value"])


def _costs(forecast: Json) -> list[tuple[str, str, str]]:
    """(what, how much, its error)."""
    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("time", "seconds", duration),
        ("disk", "disk_bytes", size),
        ("text", "text_bytes", size),
        ("tokens", "tokens", short_number),
    )
    return [(name, show(forecast[key]["value"]), show(forecast[key]["error"])) for name, key, show in shown]


def _largest(shares: dict[str, float]) -> list[tuple[str, float]]:
    """Those that are worth a word, and the rest of them as one."""
    shown = [(_WORDS.get(name, name), share) for name, share in shares.items() if share >= LEAST_SHARE]
    rest = 1.0 - sum(share for _, share in shown)
    return [*shown, ("others", rest)] if rest >= LEAST_SHARE else shown
