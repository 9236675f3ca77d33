"""What a person sees of a verb's data: tables and lines for a terminal, the same as plain text elsewhere.

Each function takes the object that `--json` prints and returns things that rich can draw. Every string of it goes
through `drawing.text`: names and texts of documents are hostile, so they are never read as markup and every control
character is shown as an escape. Off a terminal lines are not folded: `grep` sees whole ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sheaf.console import duration, is_terminal, size
from sheaf.drawing import line as _line
from sheaf.drawing import origin as _origin
from sheaf.drawing import place as _place
from sheaf.drawing import table as _table
from sheaf.drawing import text as _text

Json = dict[str, Any]
Parts = Sequence[RenderableType]
PIPE_WIDTH = 10_000  # columns off a terminal: as good as no limit
MOST_USES = 50  # uses of an item that are listed
TOKENIZER_STAYS = (
    "the tokenizer stays the one trained on earlier records: `sheaf prepare --new-tokenizer` trains another"
)
MOST_STRETCHES = 20  # of steps that saw what is forgotten
EXCERPT = 300  # characters of a document that `trace` shows
FEW = 160  # characters of bytes that are no text


def render(parts: Iterable[RenderableType], stream: TextIO) -> str:
    """Draw for this stream: colours and its width on a terminal, plain and unfolded elsewhere."""
    terminal = is_terminal(stream)
    console = Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=terminal,
        width=None if terminal else PIPE_WIDTH,
    )
    with console.capture() as capture:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, Text))
    return "\n".join(line.rstrip() for line in capture.get().split("\n"))


def init(data: Json) -> Parts:
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in data["kinds"].items())
    lines = [_line(f"{data['recipe']}: {kinds or 'no files'}")]
    if data["databases"]:
        lines.append(_line(f"{len(data['databases'])} SQLite files: look at the queries proposed"))
    lines += [_line(f"left out: {n:,} × {what}") for what, n in data["unread"].items()]
    return lines


def scanned(data: Json) -> Parts:
    """The contract of `scan --json`, the head of it; the page has the rest."""
    rows = [
        (
            *(name, f"{s['items']:,}", size(s["bytes"])),
            *(_about(s["records"]), _about(s["tokens"]), _share(s["copies"])),
            ", ".join(list(s["types"])[:3]),
        )
        for name, s in data["sources"].items()
    ]
    parts: list[RenderableType] = [
        _table(["source", ">items", ">bytes", ">records", ">tokens", ">repeated", "mostly"], rows)
    ]
    troubles = [
        (name, reason, f"{known['items']:,}", known["examples"][0]["path"])
        for name, s in data["sources"].items()
        for reason, known in s["broken"].items()
    ]
    if troubles:
        parts.append(_table(["source", "broken or refused", ">items, about", "for example"], troubles))
    for pair in data["between"]:
        first, second = pair["sources"]
        parts.append(_line(f"{_share(pair['of_first'])} of {first}'s items are in {second} too"))
    for name, groups in data["mappings"].items():
        for group in groups:
            for best in group["proposals"][:1]:
                parts.append(_line(f"{name}: {group['files'][0]} …: {best['recipe']} ({best['confidence']:.0%} sure)"))
    parts += [_line(f"not listed: {problem}") for problem in data["problems"]]
    sample, forecast = data["sample"], data["forecast"]
    parts.append(
        _line(
            f"looked at {sample['items']:,} of {sample['of_items']:,} items, {size(sample['bytes'])} of "
            f"{size(sample['of_bytes'])}, in {duration(data['seconds'])}; prepare: about "
            f"{duration(forecast['seconds']['value'])}, {size(forecast['disk_bytes']['value'])} of disk and "
            f"{size(forecast['memory_bytes']['value'])} of memory"
        )
    )
    return [*parts, _line(f"page: {data['page']}")] if data.get("page") else parts


def _share(estimate: Json) -> str:
    error = f" ± {estimate['error']:.1%}" if estimate["error"] else ""
    return f"{estimate['share']:.1%}{error}"


def _about(estimate: Json) -> str:
    return f"{estimate['value']:,} ± {estimate['error']:,}"


def prepared(data: Json) -> Parts:
    """The contract of `prepare --json`: sources, what became of them, and why something was not kept."""
    records, items = data["records"], data["items"]
    reasons = {f"dropped: {r}": n for r, n in records["dropped"].items()}
    reasons |= {f"quarantined: {r}": f"{n['regions']:,} ({size(n['bytes'])})" for r, n in data["quarantine"].items()}
    head = (
        f"corpus {data['corpus'][:12]}: {records['kept']:,} records, {data['tokens']:,} tokens "
        f"in {duration(data['seconds'])}; {items['read']:,} items read, {items['unchanged']:,} unchanged"
        + (f", {items['deferred']:,} deferred: the same command asks only for them again" if items["deferred"] else "")
    )
    return [_sources(data["sources"], data["bytes"]), *([_reasons(reasons)] if reasons else []), _line(head)]


def ledger(data: Json) -> Parts:
    parts: list[RenderableType] = [_sources(data["sources"], data["bytes"])]
    rows = [
        (source, what, reason, f"{n['count']:,}", size(n["bytes"]) if "bytes" in n else "")
        for source, by_what in data["reasons"].items()
        for what, by_reason in by_what.items()
        for reason, n in by_reason.items()
    ]
    if rows:
        parts.append(_table(["source", "what became of it", "reason", ">count", ">bytes"], rows))
    return [*parts, _line(f"corpus {data['corpus']}")]


def ledger_items(data: Json) -> Parts:
    parts: list[RenderableType] = []
    for item in data["items"]:
        parts.append(_line(item["uri"], style="bold"))
        parts.append(
            _line(
                f"  {size(item['size'])} in = {size(item['kept_bytes'])} kept + {size(item['dropped_bytes'])} dropped "
                f"+ {size(item['quarantined_bytes'])} quarantined; {item['kept']:,} records kept, "
                f"{item['duplicate']:,} duplicate, {item['dropped']:,} dropped"
            )
        )
        if item["notes"]:
            parts.append(_line(f"  {item['notes']}"))
        for region in item["regions"]:
            place = " ".join(x for x in (region["member"], _place(region["locator"])) if x)
            what = ", ".join(x for x in (region["reason"], region["detail"]) if x)
            parts.append(_line(f"  quarantined {size(region['bytes'])} {place}: {what}"))
    return parts or [_line("no item matches")]


def refused(data: Json) -> Parts:
    """Quarantined regions and dropped records, with what is in them if that was asked for."""
    parts: list[RenderableType] = [_line(data["meaning"], style="bold")] if data["meaning"] else []
    for what, things in (("quarantined", data["regions"]), ("dropped", data["dropped"])):
        for thing in things:
            place = _origin(thing)
            first = size(thing["bytes"]) if "bytes" in thing else f"record {thing['record']}"
            detail = f"{first}, {thing['detail']}"
            parts.append(_line(f"{what} {thing['reason']}: {place} ({detail.rstrip(', ')})"))
            if "excerpt" in thing:
                parts += [_line(f"  | {line}", style="dim") for line in _shown(thing["excerpt"]).split("\n")]
            elif "why" in thing:
                parts.append(_line(f"  not shown: {thing['why']}", style="dim"))
        more = data["count"][what.replace("quarantined", "regions")] - len(things)
        if more:
            parts.append(_line(f"… and {more:,} more {what}; --most lists more"))
    return parts if any(data["count"].values()) else [*parts, _line("nothing was lost there")]


def forgotten(data: Json) -> Parts:
    """What would go or has gone, what takes its place, and who has seen it."""
    parts: list[RenderableType] = []
    if "gone" in data:
        gone, promoted = data["gone"], data["promoted"]
        verb = "are forgotten" if data["done"] else "would be forgotten"
        head = f"{gone['records']:,} kept records ({gone['tokens']:,} tokens) {verb}"
        parts.append(_line(f"{head}; {promoted['records']:,} others take their place", style="bold"))
        none = {"records": 0, "tokens": 0}
        rows = [
            (name, f"{n['records']:,}", f"{n['tokens']:,}", f"{promoted['by_source'].get(name, 0):,}")
            for name in dict.fromkeys((*gone["by_source"], *promoted["by_source"]))
            for n in [gone["by_source"].get(name, none)]
        ]
        parts.append(_table(["source", ">records", ">tokens", ">promoted"], rows))
        if not data["runs"]:
            parts.append(_line("no run here has seen them"))
        for run in data["runs"]:
            parts.append(_line(f"{run['run']}: {run.get('why') or _seen(run)}"))
    if "purged" in data:
        purged = data["purged"]
        what = f"{purged['versions']:,} older versions and {purged['shards']:,} shards"
        parts.append(_line(f"{what} removed, {size(purged['bytes'])}"))
        if purged["tokenizer"]:
            parts.append(_line(TOKENIZER_STAYS))
    return parts


def _seen(run: Json) -> str:
    """Which steps saw something, and which checkpoints came after one that did."""
    stretches = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in run["steps"]]
    more = f" and more up to {run['last_step']:,}" if len(stretches) > MOST_STRETCHES else ""
    steps = ", ".join(stretches[:MOST_STRETCHES]) + more
    known = ", ".join(run["checkpoints"]) or "none"
    return f"{run['uses']:,} uses, in steps {steps}; checkpoints that know it: {known}"


def versions(data: Json) -> Parts:
    rows = [
        (
            *(v["corpus"], "newest" if v["head"] else "", v["made"]),
            *(f"{v['documents']:,}", f"{v['tokens']:,}", size(v["bytes"]), size(v["own_bytes"])),
        )
        for v in data["versions"]
    ]
    return [_table(["corpus", "", "made", ">documents", ">tokens", ">on disk", ">its alone"], rows)]


def compared(data: Json) -> Parts:
    """What changed from one version to another."""
    rows = [
        (
            name,
            *(f"{n[k]:,}" for k in ("stayed", "came", "went")),
            ", ".join(f"{r}: {c:,}" for r, c in n["why"].items()),
        )
        for name, n in data["sources"].items()
    ]
    items, (before, after) = data["items"], data["tokens"]
    return [
        _line(f"{data['old']} → {data['new']}: {before:,} → {after:,} tokens", style="bold"),
        _table(["source", ">stayed", ">came", ">went", "why they went"], rows),
        _line(f"items: {items['came']:,} came, {items['went']:,} went, {items['changed']:,} changed"),
        *(_line(f"{key}: {old} → {new}") for key, (old, new) in data["settings"].items()),
    ]


def started(data: Json) -> Parts:
    """The contract of `train --start-only --json`."""
    return [_pairs({"run": data["run"]})]


def joined(data: Json) -> Parts:
    """The contract of `train --nnodes --json` on a machine that is not the host, which alone tells of the run."""
    return [_pairs({"run": data["run"] or "as the host says"})]


def trained(data: Json) -> Parts:
    """The contract of `train --json`."""
    shown = {
        "run": data["run"],
        "steps": f"{data['steps']:,}",
        "loss": _number(data["loss"]),
        "held-out loss": _number(data["validation_loss"]),
        "tokens/s": _number(data["tokens_per_second"]),
        "peak memory": size(data["peak_memory_bytes"] or 0),
        "checkpoint": data["checkpoint"],
    }
    if step := (data.get("forecast") or {}).get("step_seconds"):
        shown["a step"] = f"{step['fact']:.3g} s; the forecast was {step['forecast']:.3g} s"
    if memory := (data.get("forecast") or {}).get("memory_bytes"):
        shown["peak memory"] += f"; the forecast was {size(memory['forecast'])} of a rank"
    best = data.get("best")
    if best and best["step"] != data["steps"]:
        loss = _number(best["validation_loss"])
        shown["best checkpoint"] = f"step {best['step']:,}, held-out loss {loss}: sheaf export --step {best['step']}"
    if data.get("replaced"):
        shown["samples replaced"] = f"{data['replaced']:,}, as blocks of the corpus are damaged: sheaf prepare"
    if data.get("bits_per_byte") is not None:
        shown["held-out bits per byte"] = _number(data["bits_per_byte"])
    if data.get("restarts"):
        shown["restarts"] = f"{data['restarts']}, which took {duration(data['lost_seconds'])}"
    return [_pairs(shown)]


def verified(data: Json) -> Parts:
    """The contract of `verify --json`: a line a layout, and a verdict."""
    kinds = ("loss", "gradient", "change")
    rows = [
        (
            ", ".join(f"{k} {v}" for k, v in one["layout"].items() if v not in (1, "1f1b")) or "one process",
            str(one["ranks"]),
            *(f"{one[kind]['error']:.1e}" for kind in kinds),
            "equal" if one["holds"] else f"differs: {one['gradient']['where']}",
        )
        for one in data["layouts"]
    ]
    bounds = ", ".join(f"{kind} {bound:g}" for kind, bound in data["tolerance"].items())
    wrong = sum(not one["holds"] for one in data["layouts"])
    verdict = (
        "all layouts compute what one process computes" if data["holds"] else f"{wrong} layouts compute something else"
    )
    return [
        _table(["layout", ">ranks", ">loss", ">gradient", ">change", "verdict"], rows),
        _line(f"{verdict} ({data['steps']} steps in {data['precision']}; bounds, relative: {bounds})", style="bold"),
    ]


def traced(data: Json) -> Parts:
    """The contract of `trace --step`: sample → document → origin → excerpt."""
    parts: list[RenderableType] = [_line(f"step {data['step']}", style="bold")]
    for sample in data["samples"]:
        place = f"rank {sample['rank']}, row {sample['row']}"
        parts.append(_line(f"sample {sample['sample']} ({place})", style="bold"))
        if instead := sample.get("instead_of"):
            said = f"in place of a sample in a damaged block: {instead['file']}, block {instead['block']}"
            parts.append(_line(said, style="yellow"))
        for document in sample["documents"]:
            start, end = document["tokens"]
            parts.append(_line(f"  record {document['record']}, tokens {start:,} to {end:,}"))
            one = "predicts" in document  # a single token, whose text stands in its line
            parts += [_line(f"    {_learned(document)}")] if one else []
            parts += [_line(f"    from {_origin(origin)}") for origin in document["origins"]]
            parts += [] if one else [_line(f"    | {_excerpt(document['text'])}", style="dim")]
    return parts


def _learned(document: Json) -> str:
    """What stands at one position of a sample, and what is learned there."""
    then = document["predicts"]
    here = f"position {document['position']}: token {document['id']} {document['text']!r} "
    return here + (
        f"predicts token {then['id']} {then['text']!r}" if then else "predicts nothing: what follows is read"
    )


def pairs(data: Json) -> Parts:
    """Any flat object; what is nested is counted."""
    return [_pairs({k: v if not isinstance(v, (list, dict)) else _count(v) for k, v in data.items()})]


def item_traced(data: Json) -> Parts:
    """Where source items went: their records, the steps that saw them, the checkpoints that know them."""
    documents, uses, checkpoints = data["documents"], data["uses"], data["checkpoints"]
    rows = [
        (*(str(u[k]) for k in ("step", "sample", "rank", "tokens")), u["source"], f"{u['epoch']:g}", u["record"])
        for u in uses[:MOST_USES]
    ]
    more = [_line(f"… and {len(uses) - MOST_USES:,} more; --json lists all")] if len(uses) > MOST_USES else []
    head = _line(
        f"{data['item']}: records in the corpus: {len(documents):,}; uses in the run: {len(uses):,}", style="bold"
    )
    silent = data["without_text"]
    if silent:
        more.append(_line(f"{silent:,} records of it have no text: pictures or sounds, and nothing is trained on them"))
    known = f"checkpoints that saw it: {', '.join(checkpoints) or 'none'}"
    table = [_table([">step", ">sample", ">rank", ">tokens", "source", ">epoch", "record"], rows)] if rows else []
    return [head, *table, *more, _line(known)]


def all_verified(data: Json) -> bool:
    """Whether every origin of a verified trace gave its text again."""
    documents = (document for sample in data["samples"] for document in sample["documents"])
    return all(origin["verified"] for document in documents for origin in document["origins"])


def report(data: Json) -> Parts:
    return [_line(data["report"])]


def exported(data: Json) -> Parts:
    return [_line(f"{data['folder']}: {', '.join(data['files'])}")]


def doctor(data: Json) -> Parts:
    colours = {"ok": "green", "warn": "yellow", "fail": "red bold"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in data["checks"]:
        detail = check["detail"] + (f"; {check['fix']}" if check["fix"] else "")
        table.add_row(Text(check["status"], style=colours[check["status"]]), _text(check["id"]), _text(detail))
    return [table, _line(f"{data['ok']} ok, {data['warn']} warnings, {data['fail']} failures")]


def demo(data: Json) -> Parts:
    """The figures alone: the story was told while it went."""
    held_out = {k: _number(v) for k, v in data["held_out"].items() if k in ("bits_per_byte", "xz", "unigram")}
    shown = {"run": data["run"], "loss": _number(data["train"]["loss"]), **held_out, "report": data["report"]}
    return [_pairs(shown)]


def end_of_line(data: Json) -> Parts:
    """After a text that was printed as it came."""
    return [Text("")]


def _sources(sources: Mapping[str, Json], bytes_of_all: Json) -> Table:
    """One row a source and one of their sum."""
    counts = ("items", "records_kept", "duplicate", "tokens")
    total = {**{k: sum(s[k] for s in sources.values()) for k in counts}, **bytes_of_all}
    columns = [
        "source",
        ">items",
        ">bytes in",
        ">kept",
        ">dropped",
        ">quarantined",
        ">records",
        ">duplicates",
        ">tokens",
    ]
    rows = [
        (
            name,
            f"{s['items']:,}",
            *(size(s[k]) for k in ("in", "kept", "dropped", "quarantined")),
            *(f"{s[k]:,}" for k in ("records_kept", "duplicate", "tokens")),
        )
        for name, s in (*sources.items(), ("all", total))
    ]
    return _table(columns, rows)


def _reasons(reasons: Mapping[str, object]) -> Table:
    return _table(
        ["not kept", ">records"], [(k, f"{v:,}" if isinstance(v, int) else str(v)) for k, v in reasons.items()]
    )


def _pairs(shown: Mapping[str, object]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in shown.items():
        table.add_row(_text(key), _text(_number(value) if isinstance(value, float) else str(value)))
    return table


def _shown(excerpt: str) -> str:
    """All of a text; of bytes that are none, enough to tell what they are."""
    odd = sum(not (c.isprintable() or c.isspace()) for c in excerpt) + 4 * excerpt.count("\\x")
    return excerpt if 10 * odd < len(excerpt) else excerpt[:FEW] + (" …" if len(excerpt) > FEW else "")


def _excerpt(text: str) -> str:
    begins, rest = " ".join(text[: 2 * EXCERPT].split()), text[2 * EXCERPT :]
    return begins[:EXCERPT] + (" …" if len(begins) > EXCERPT or rest.strip() else "")


def _count(value: list[Any] | dict[str, Any]) -> str:
    return f"{len(value):,}"


def _number(value: object) -> str:
    if not isinstance(value, (int, float)):
        return "not measured" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
