"""What a person sees of `sheaf show`: counts by reason, examples of what was dropped, and what other thresholds do.

As in `show.py`, whose words for terminals these are: every string of the data is escaped before it is drawn.
"""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from sheaf.drawing import line, origin, table
from sheaf.show import Parts

Json = dict[str, Any]


def counts(data: Json) -> Parts:
    """Distinct records by source and reason; what is kept comes first."""
    rows = [
        (source, reason, f"{n:,}")
        for source, found in data["sources"].items()
        for reason, n in sorted(found.items(), key=lambda item: (item[0] != "kept", -item[1], item[0]))
    ]
    parts = [table(["source", "what became of them", ">distinct records"], rows)]
    personal = [
        (source, kind, f"{n['all']:,}", f"{n['kept']:,}")
        for source, kinds in data["privacy"].items()
        for kind, n in kinds.items()
    ]
    if personal:
        parts.append(table(["source", "personal data", ">found", ">in what is kept"], personal))
    return [*parts, line(f"corpus {data['corpus']}")]


def page(data: Json) -> Parts:
    return [line(data["report"])]


def largest(data: Json) -> str:
    """The reason that dropped most; "" if nothing was."""
    total: dict[str, int] = {}
    for found in data["sources"].values():
        for reason, n in found.items():
            total[reason] = total.get(reason, 0) + n * (reason != "kept")
    return max(total, key=lambda reason: (total[reason], reason)) if any(total.values()) else ""


def examples(data: Json) -> Parts:
    """Each example: where it lies, the scores that decided, how it begins; beside it the record kept in its place."""
    head = f"{data['reason']}: {data['count']:,} distinct records. {data['meaning']}"
    parts: list[RenderableType] = [line(head, style="bold")]
    for example in data["examples"]:
        why = [f"{name} {_value(value)}" for name, value in example["scores"].items()]
        why += [f"{'similarity ' if 'of' in example else ''}{example['detail']}"] if example["detail"] else []
        parts.append(line(f"{example['reason']}: {origin(example)} (record {example['record']})"))
        parts += [line(f"  {', '.join(why)}")] if why else []
        parts += _quoted(example["excerpt"], "|")
        if kept := example.get("of"):
            parts.append(line(f"  kept in its place: {origin(kept)} (record {kept['record']})"))
            parts += _quoted(kept["excerpt"], "=")
    return parts


def what_if(data: Json) -> Parts:
    """A line for each alternative that changes something, and each source that it changes."""
    rows = [
        (rule["reason"], _bound(rule, rule["threshold"]), _bound(rule, other["threshold"]), source, *_gain(gain))
        for rule in data["rules"]
        for other in rule["alternatives"]
        for source, gain in other["sources"].items()
        if gain["records"]
    ]
    columns = ["rule", "now", "instead", "source", ">records", ">tokens"]
    note = "one rule is changed at a time; near duplicates are not decided again"
    return [table(columns, rows), line(note)] if rows else [line("no other threshold would change anything")]


def _bound(rule: Json, value: float | None) -> str:
    """>= 50, < 0.3, or without"""
    if value is None:
        return "without" if rule["threshold"] is not None else ""
    return f"{rule['sign']} {value:,.6g}"


def _gain(gain: Json) -> tuple[str, str]:
    return f"{gain['records']:+,}", f"{gain['tokens']:+,}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value in (None, "") else str(value)


def _quoted(text: str, mark: str) -> list[RenderableType]:
    return [line(f"  {mark} {part}", style="dim") for part in text.split("\n")]
