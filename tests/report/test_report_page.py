"""The report is one safe, well-formed file, whatever documents, names and messages hold."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from sheaf.report.build import render
from sheaf.report.charts import Line, Part, histogram, lines, short_number, stacked
from sheaf.report.facts import (
    BatchFacts,
    CorpusFacts,
    EpochFacts,
    PersonalFacts,
    ReasonFacts,
    Repeat,
    RunFacts,
    SourceFacts,
    time_spent,
)
from sheaf.report.rules import Change, RuleFacts, RulesFacts

HOSTILE = """<script>alert(1)</script><img src=x onerror="alert('2')">&amp;{{ 7 * 7 }}</svg></style>"""
VOID = {"meta", "br", "link", "img", "hr", "input"}


def source(name: str, uri: str) -> SourceFacts:
    return SourceFacts(name, uri, HOSTILE, 3, 1000, 700, 200, 100, 20, 12, 5, 3, 1, 5000, 0.5)


def rules(text: str = HOSTILE) -> RulesFacts:
    place = {"record": "00ff", "source": text, "uri": text, "path": text, "member": text, "excerpt": text}
    example = {**place, "reason": text, "detail": text, "scores": {text: text, "words": 3, "ratio": 0.5}, "of": place}
    return RulesFacts(
        rules=[RuleFacts(text, text, 50.0, True, n, [0.0, 1.0, 64.0, 128.0], [3, 5, 7], [n, 0, 0]) for n in (0, 3)],
        changes=[Change(text, "≥ 50", "no rule", text, -3, 1200)],
        dropped=[{"reason": text, "meaning": text, "count": 2, "examples": [example]}],
        kept=[place],
        clusters=[{"size": 3, "kept": place, "dropped": [place]}],
        names=["a", text],
        overlap=[["", "1 + 2"], ["", ""]],
    )


def corpus(text: str = HOSTILE) -> CorpusFacts:
    example = {"source": "a", "path": text, "member": text, "bytes": 10, "locator": text, "detail": text}
    return CorpusFacts(
        digest="0123456789abcdef",
        documents=12,
        vocab_size=512,
        sources=[source("a", "./a"), source("b", text)],
        total=source("all", ""),
        reasons=[ReasonFacts("bad-json", text, 2, 100, [example])],
        dropped={"too-short": 3},
        repeats=[Repeat(7, text)],
        recipe_prepare={},
        rules=rules(text),
        decisions=(("a", "kept", 12), (text, text, 3)),
        personal=(PersonalFacts(text, text, text, 1234, 5),),
    )


def run(text: str = HOSTILE, steps: int = 50) -> RunFacts:
    journal: list[dict[str, Any]] = [
        {
            **{"step": n, "loss": 9 - math.log(n + 1), "tokens": 512 * (n + 1), "lr": 0.01, "grad_norm": 1.0},
            **{"tokens_per_second": 5000.0 + n, "seconds": 0.1, "data_seconds": 0.01, "communication_seconds": 0.02},
            **{"source_tokens": {"a": 300, text: 212 + n}, "packing": 0.99, "balance": 1.25},
        }
        for n in range(steps)
    ]
    evaluations = [{"step": n, "loss": 8.0 - n / 50, "bits_per_byte": 2.5, "seconds": 0.5} for n in range(0, steps, 10)]
    return RunFacts(
        name=text,
        started="2026-01-01",
        ranks=2,
        restarts=3,
        lost_seconds=21.0,
        settings={"compile": text},
        recipe=text,
        steps=journal,
        evaluations=evaluations,
        seconds=time_spent(journal, evaluations),
        epochs=[EpochFacts("a", 2.0, 10, 15, 1.5, 4.0, 0.667, 0.612), EpochFacts(text, 1.0, 10, 5, 0.5, None)],
        batches=[BatchFacts("packing", 0.991, 0.872), BatchFacts("balance", 1.125, 1.25)],
        changes=[(1200, {"a": 0.25, text: 0.75})],
        result={},
        versions={"python": text},
    )


class Checker(HTMLParser):
    """Collects tags and attributes, and sees that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_mixture_that_was_asked_for_stands_beside_the_one_that_came_and_how_full_and_even_steps_were() -> None:
    page = checked(render(corpus(), run("b")))
    text = " ".join(" ".join(page.text).split())
    assert "a 2.0 66.7% 61.2%" in text
    assert "from step 1,200 on a 25.0%, b 75.0%" in text
    assert "packing 99.1% 87.2%" in text and "balance 1.125 1.250" in text
    assert "Share of the tokens" in text


@pytest.mark.parametrize("trained", [True, False])
def test_hostile_text_is_shown_and_never_becomes_markup(trained: bool) -> None:
    page = checked(render(corpus(), run() if trained else None))
    assert not {"script", "img", "iframe", "object", "link"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert HOSTILE in "".join(page.text)


def test_the_page_refers_to_nothing_outside_and_forbids_it() -> None:
    text = render(corpus("plain"), run("plain"))
    page = checked(text)
    assert not any(name in ("src", "href", "xlink:href", "action", "data") for name, _ in page.attributes)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    policy = [v for n, v in page.attributes if n == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in policy


def test_every_chart_is_well_formed() -> None:
    charts = re.findall(r"<svg.*?</svg>", render(corpus(), run()), flags=re.DOTALL)
    assert len(charts) == 9  # loss, learning rate, throughput, gradient norm, shares, time, ledger, two rules
    for chart in charts:
        ElementTree.fromstring(chart)


@pytest.mark.parametrize("steps", [0, 1, 2, 5000])
def test_a_run_of_any_length_has_a_page(steps: int) -> None:
    page = render(corpus(), run(steps=steps))
    checked(page)
    assert ("No step has been done yet" in page) == (steps == 0)
    assert len(page) < 400_000


def test_figures_that_are_not_numbers_leave_a_chart_that_can_be_drawn() -> None:
    chart = lines([Line("loss", [0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0], 1)], title="t", x_name="x", y_name="y")
    ElementTree.fromstring(chart)
    assert "nan" not in chart and "inf" not in chart
    assert lines([Line("loss", [0], [math.nan], 1)], title="t", x_name="x", y_name="y") == ""


def test_a_constant_line_has_a_scale() -> None:
    ElementTree.fromstring(lines([Line("rate", [0, 1], [0.0, 0.0], 1)], title="t", x_name="x", y_name="y"))


def test_a_spike_among_many_points_is_still_drawn() -> None:
    y = [1.0] * 5000
    y[2503] = 9.0
    chart = lines([Line("loss", range(5000), y, 1)], title="t", x_name="x", y_name="y")
    heights = {float(p.split(",")[1]) for p in re.findall(r"[\d.]+,[\d.]+", chart.split('class="line')[1])}
    assert len(heights) == 2


def test_the_parts_of_a_bar_fill_its_width() -> None:
    bar = stacked([("a", (1, 2, 5))], [Part("x", 1), Part("y", 2), Part("z", 3)], title="t")
    widths = [float(r.get("width", "0")) for r in ElementTree.fromstring(bar).iter("rect")]
    assert sum(widths) == pytest.approx(516, abs=0.2)
    assert widths[2] == pytest.approx(5 * widths[0], abs=0.3)


def test_a_source_of_nothing_has_no_bar() -> None:
    assert "<rect" not in stacked([("a", (0, 0))], [Part("x", 1), Part("y", 2)], title="t")


def test_the_time_is_split_without_rest() -> None:
    journal = [{"seconds": 2.0, "data_seconds": 0.5, "communication_seconds": 0.25, "tokens_per_second": 1.0}] * 4
    spent = time_spent(journal, [{"seconds": 3.0}])
    assert spent == {"computing": 5.0, "data": 2.0, "communication": 1.0, "evaluation": 3.0}


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (999, "999"), (1200, "1.2k"), (2.5e6, "2.5M"), (3e9, "3G")])
def test_numbers_are_short(value: float, shown: str) -> None:
    assert short_number(value) == shown


def threshold_at(chart: str) -> float:
    (place,) = re.findall(r'class="threshold" d="M([0-9.]+),', chart)
    return float(place)


def test_the_threshold_of_a_histogram_stands_between_the_bins_that_it_parts() -> None:
    edges, counts = [0.0, 1.0, 2.0, 4.0, 8.0], [1, 10, 100, 1000]
    chart = histogram(edges, counts, [1, 10, 0, 0], 2.0, title="words", x_name="words")
    bars = [float(x) for x in re.findall(r'<rect class="b3" x="([0-9.]+)"', chart)]
    assert len(bars) == 4
    assert bars[1] < threshold_at(chart) <= bars[2]
    later = histogram(edges, counts, [1, 10, 0, 0], 3.0, title="words", x_name="words")
    assert bars[2] < threshold_at(later) < bars[3]
    for other in (-5.0, 100.0):  # outside all bins it stands at the end
        ElementTree.fromstring(histogram(edges, counts, counts, other, title="<&>", x_name="<&>"))


def test_a_histogram_is_as_wide_as_what_was_counted() -> None:
    edges = [float(n) for n in range(101)]
    counts = [0] * 40 + [5, 0, 7] + [0] * 57
    chart = histogram(edges, counts, [0] * 100, 41.0, title="t", x_name="x")
    assert len(re.findall(r'<rect class="b3"', chart)) == 2
    assert "40 to 41: 5" in chart
    assert "42 to 43: 7" in chart
    assert "10 to 11" not in chart
    assert histogram(edges, [0] * 100, [0] * 100, 41.0, title="t", x_name="x") == ""


def test_a_corpus_without_rules_of_its_own_has_a_page() -> None:
    assert "Before and after" not in render(replace(corpus(), rules=None), None)
