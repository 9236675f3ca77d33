"""What a person sees of a forecast: the head of what `plan --json` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from sheaf.console import duration, size
from sheaf.drawing import line, table

Json = dict[str, Any]
REASONS = 8  # rejected layouts that are shown


def planned(data: Json) -> Sequence[RenderableType]:
    parts: list[RenderableType] = [line(_data(data["prepare"])), line(_machine(data["machine"]))]
    training = data["training"]
    if "layout" in training:
        parts += [line(text) for text in _training(data, training)]
    rows = [
        (one["layout"], _seconds(one["step_seconds"]), _size(one["memory_bytes"]), "fits") for one in data["layouts"]
    ]
    rejected = data["rejected"]
    rows += [(_name(one), "", "", one["reason"]) for one in rejected[:REASONS]]
    if rows:
        parts.append(table(["layout", ">a step", ">memory a rank", "verdict"], rows))
    if len(rejected) > REASONS:
        parts.append(line(f"and {len(rejected) - REASONS} more that cannot be or do not fit (--json has them)"))
    if data["changes"]:
        parts.append(line("it would fit with " + ", or ".join(data["changes"])))
    if data["nodes"]:
        parts.append(_nodes(data["nodes"]))
    if data["budget"]:
        parts += [line(text) for text in _budget(data["budget"])]
    return parts


def calibrated(data: Json) -> Sequence[RenderableType]:
    """The contract of `plan --calibrate --json`."""
    rows = [
        (kind, part, f"{told['factor']:.2f}", f"{told['spread']:.0%}", str(told["runs"]))
        for kind, parts in data["kinds"].items()
        for part, told in parts.items()
    ]
    shown = table(["forecasts of", "part", ">fact / forecast", ">± of it", ">runs"], rows)
    return [shown, line(f"learned from {data['runs']} finished runs: {data['file']}")]


def _budget(budget: Json) -> list[str]:
    lines = [
        f"{budget['words']} ({duration(budget['seconds'])}): best spent on {budget['parameters']:,} parameters and "
        f"{budget['tokens']:,} tokens ({budget['epochs']:.1f} epochs), layout {budget['layout']}, "
        f"a step {_seconds(budget['step_seconds'])}; loss about {budget['loss']:.2f} nats a token",
        f"by {budget['source']}",
        *budget["notes"],
        "in the recipe: " + " ".join(budget["change"]),
    ]
    return lines


def _data(prepare: Json) -> str:
    tokens = prepare["tokens"]
    said = f"{tokens['value']:,} tokens" + (f" ± {tokens['error']:,}" if tokens["error"] else "")
    if prepare["from"] == "corpus":
        return f"corpus {prepare['digest'][:12]}: {said}, prepared"
    seconds, disk, cost = prepare["seconds"], prepare["disk_bytes"], prepare["cost"]
    return (
        f"to prepare: {prepare['items']:,} items, {size(prepare['bytes'])}, about {prepare['records']:,} records and "
        f"{said}; {duration(seconds['value'])} ± {duration(seconds['error'])} on {prepare['workers']} workers, "
        f"{size(disk['value'])} of disk, {size(prepare['memory_bytes']['value'])} of memory"
        + (f", cost {cost['value']:,.2f} ± {cost['error']:,.2f}" if cost else "")
    )


def _machine(machine: Json) -> str:
    rates = machine["rates"]
    name = f"{machine['ranks']} × {machine['name']}"
    link = machine["host_bytes_per_second"]
    return (
        f"{name}: {_flops(rates['layers'])} in layers, {_flops(rates['attention'])} in attention"
        + (f", {size(link)}/s between ranks" if link else "")
        + f", {size(machine['memory_bytes'])} a rank; {machine['source']}"
        + (f" in {duration(machine['probe_seconds'])}" if machine["probe_seconds"] else "")
    )


def _training(data: Json, training: Json) -> list[str]:
    model, step, whole = data["model"], training["step_seconds"], training["seconds"]
    steps, memory = training["steps"], training["memory_bytes"]
    lines = [
        f"{model['parameters']:,} parameters, layout {training['layout']}"
        + ("" if training["fits"] else f": {training['reason']}"),
        f"a step: {_seconds(step['value'])} ± {_seconds(step['error'])} "
        f"({_parts(training['step'], _seconds)}); {training['tokens_per_second']['value']:,.0f} tokens/s",
        f"the run: {steps['value']:,} steps in {duration(whole['value'])} ± {duration(whole['error'])} "
        f"({_parts(training['run'], duration)}); {size(training['disk_bytes'])} of disk",
    ]
    if memory:
        lines.append(
            f"memory a rank: {size(memory['value'])} ± {size(memory['error'])} ({_parts(training['memory'], size)})"
        )
    if training["calibrated"]["runs"]:
        lines.append(f"calibrated by {training['calibrated']['runs']} finished runs of this workspace")
    if training["cost"]:
        lines.append(f"cost: {training['cost']['value']:,.2f} ± {training['cost']['error']:,.2f}")
    return lines


def _nodes(nodes: Sequence[Json]) -> RenderableType:
    rows = [
        (str(one["nodes"]), str(one["ranks"]), "", "", "", "", "", one["reason"])
        if one["layout"] is None
        else (
            *(str(one["nodes"]), str(one["ranks"]), _seconds(one["step_seconds"]["value"])),
            *(duration(one["seconds"]["value"]), f"{one['tokens_per_second']['value']:,.0f}"),
            *(f"{one['efficiency']:.0%}", f"{one['cost']['value']:,.0f}" if one["cost"] else ""),
            one["layout"] + ("" if one["pays"] else "; no longer pays"),
        )
        for one in nodes
    ]
    return table([">nodes", ">ranks", ">a step", ">the run", ">tokens/s", ">efficiency", ">cost", "layout"], rows)


def _parts(parts: Json, write: Any) -> str:
    """The largest, until nine tenths are told."""
    largest = sorted(((value, name) for name, value in parts.items() if value), reverse=True)
    whole, told, words = sum(value for value, _ in largest), 0.0, list[str]()
    for value, name in largest:
        if words and told > 0.95 * whole:
            break
        told += value
        words.append(f"{name} {write(value)}")
    return ", ".join(words)


def _name(rejected: Json) -> str:
    return rejected["layout"] if "layout" in rejected else f"{rejected['layouts']} such as {rejected['such_as']}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return duration(value) if value >= 10 else f"{value:.2f} s" if value >= 0.1 else f"{1e3 * value:.1f} ms"


def _size(value: float | None) -> str:
    return "" if value is None else size(value)


def _flops(value: float) -> str:
    return f"{value / 1e12:,.0f} TFLOP/s" if value >= 1e13 else f"{value / 1e9:,.0f} GFLOP/s"
