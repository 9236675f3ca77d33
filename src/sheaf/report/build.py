"""The report: one HTML file that needs nothing else, no network, no script, to show what became of data and training.

What documents, file names and messages hold is hostile: every value is escaped by the template engine, and the page's
own policy forbids scripts and all requests, so that even a mistake here could not load or run anything.
Cost: one pass over ledger and journal; about 60 kB.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from sheaf.console import duration, size
from sheaf.corpus.version import CorpusVersion
from sheaf.files import write_file
from sheaf.report.charts import Line, Part, histogram, legend, lines, short_number, stacked
from sheaf.report.facts import CorpusFacts, RunFacts, corpus_facts, run_facts, source_shares, versions
from sheaf.report.rules import RuleFacts, bound
from sheaf.train.run import Run

ACCOUNT = (Part("kept", 3), Part("dropped", 2), Part("quarantined", 4))
RECORDS = (Part("records", 3), Part("dropped by the rule", 2))
_COLOURS = (1, 2, 3, 4, 5, 6)


def write_report(run: Path) -> Path:
    """Write run/report.html, also of a run that is under way; returns its path."""
    opened = Run.open(run)
    corpus = opened.corpus()
    trained = run_facts(opened, corpus)
    path = opened.folder / "report.html"
    write_file(path, render(corpus_facts(corpus), trained).encode())
    return path


def write_corpus_report(corpus: CorpusVersion, path: Path) -> Path:
    """The same without a training run: sources, ledger, quarantine, duplicates."""
    write_file(path, render(corpus_facts(corpus), None).encode())
    return path


def render(data: CorpusFacts, run: RunFacts | None) -> str:
    """The page."""
    return page_template("sheaf.report", "template.html").render(
        data=data,
        run=run,
        title=run.name if run else f"corpus {data.digest[:8]}",
        figures=_figures(data, run),
        ledger=stacked(
            [(s.name, (s.kept_bytes, s.dropped_bytes, s.quarantined_bytes)) for s in data.sources],
            ACCOUNT,
            title="Bytes in = kept + dropped + quarantined, by source",
        ),
        ledger_legend=legend(ACCOUNT),
        charts=_charts(run) if run else [],
        histograms=[_histogram(rule) for rule in data.rules.rules] if data.rules else [],
        histogram_legend=legend(RECORDS),
        time=_time(run) if run else None,
        versions=run.versions if run else versions(),
    )


@cache
def page_template(package: str, name: str, **filters: Callable[..., Any]) -> Template:
    """A page of ours: autoescaped, with the report's style. package: where the template lies. filters: of its own."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("sheaf.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(size=size, duration=duration, short=short_number, share=_percent, **filters)
    return environment.get_template(name)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _figures(data: CorpusFacts, run: RunFacts | None) -> list[tuple[str, str]]:
    """Headline figures: (value, what it is)."""
    found = [
        (size(data.total.bytes_in), f"read from {len(data.sources)} sources"),
        (f"{data.total.kept:,}", "records kept"),
        (f"{data.total.duplicate:,}", "duplicates dropped"),
        (f"{data.total.quarantined:,}", "regions quarantined"),
        (short_number(data.total.tokens), "tokens in the corpus"),
    ]
    if run and run.steps:
        last = run.steps[-1]
        tokens = last["tokens"]
        seconds = sum(step["seconds"] for step in run.steps)
        found += [(f"{len(run.steps):,}", "steps"), (f"{last['loss']:.3f}", "training loss at the end")]
        if run.evaluations:
            found.append((f"{run.evaluations[-1]['loss']:.3f}", "held-out loss at the end"))
            if "bits_per_byte" in run.evaluations[-1]:
                found.append((f"{run.evaluations[-1]['bits_per_byte']:.3f}", "held-out bits per byte"))
        found.append((short_number(tokens), "tokens trained on"))
        if replaced := sum(len(step.get("replaced", ())) for step in run.steps):
            found.append((f"{replaced:,}", "samples replaced: the corpus is damaged"))
        found.append((short_number(tokens / seconds if seconds else 0.0), "tokens a second"))
        if run.restarts:
            found.append((f"{run.restarts:,}", f"restarts, which took {duration(run.lost_seconds)}"))
    return found


def _charts(run: RunFacts) -> list[tuple[str, Markup]]:
    """(heading, chart) of each that has points."""
    steps = [float(step["step"]) for step in run.steps]

    def column(name: str) -> list[float]:
        return [float(step.get(name) or 0.0) for step in run.steps]

    loss, speed = column("loss"), column("tokens_per_second")
    held_out = Line(
        "held out", [float(e["step"]) for e in run.evaluations], [float(e["loss"]) for e in run.evaluations], 4, True
    )
    drawn = [
        ("Loss", [Line("each step", steps, loss, 1, faint=True), Line("training", steps, _smooth(loss), 1), held_out]),
        ("Learning rate", [Line("rate", steps, column("lr"), 3)]),
        ("Throughput", [Line("each step", steps, speed, 5, faint=True), Line("tokens/s", steps, _smooth(speed), 5)]),
        ("Gradient norm", [Line("norm", steps, column("grad_norm"), 2)]),
    ]
    if run.steps and "source_tokens" in run.steps[0] and len(run.epochs) > 1:
        largest = sorted(run.epochs, key=lambda e: -e.achieved)[: len(_COLOURS)]
        shares = [
            Line(e.name, steps, _smooth(source_shares(run.steps, e.name)), colour)
            for e, colour in zip(largest, _COLOURS, strict=False)
        ]
        drawn.append(("Share of the tokens", shares))
    charts = [
        (name, lines(chart, title=name, x_name="step", y_name=name.lower(), from_zero=name != "Loss"))
        for name, chart in drawn
    ]
    return [(name, chart) for name, chart in charts if chart]


def _histogram(rule: RuleFacts) -> tuple[RuleFacts, str, Markup]:
    """The rule, what it keeps, and where the records lie."""
    keeps = f"{rule.signal} {bound(rule.threshold, rule.sign)}"
    chart = histogram(
        rule.edges, rule.records, rule.dropped, rule.threshold, title=f"{rule.reason}: {keeps}", x_name=rule.signal
    )
    return rule, keeps, chart


def _smooth(values: list[float]) -> list[float]:
    """An exponential mean over about a fortieth of the run, started without a bias."""
    keep = 1.0 - 1.0 / max(1.0, len(values) / 40)
    result: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def _time(run: RunFacts) -> dict[str, Any] | None:
    """Where the time went: one bar, its legend and the numbers."""
    total = sum(run.seconds.values())
    if total <= 0:
        return None
    largest = sorted(run.seconds, key=lambda name: -run.seconds[name])
    parts = [Part(name.replace("_", " "), _COLOURS[n % len(_COLOURS)]) for n, name in enumerate(largest)]
    values = [run.seconds[name] for name in largest]
    return {
        "bar": stacked([(f"{duration(total)} in all", values)], parts, title="Where the time went"),
        "legend": legend(parts),
        "rows": [(part.name, value, value / total) for part, value in zip(parts, values, strict=True)],
    }
