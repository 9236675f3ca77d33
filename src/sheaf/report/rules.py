"""What the report says of a corpus' rules: before and after, histograms, other thresholds, near duplicates, overlap.

Everything quoted comes masked from `prepare.examples`. Cost: a pass over the score columns that the rules read, a pass
over the decisions for each reason that is shown, and a few records' texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sheaf.corpus.version import CorpusVersion
from sheaf.prepare.examples import clusters, counts, examples, kept
from sheaf.prepare.whatif import what_if

Json = dict[str, Any]
REASONS = 8  # of which examples are shown: those that dropped most
EXAMPLES = 2
CLUSTERS = 5
SAMPLES = 4  # records that are kept
SIGNS = {">=": "≥", "<=": "≤", "==": "=", "!=": "≠"}
EXCERPT = 300  # characters that are quoted of each


@dataclass(frozen=True)
class RuleFacts:
    """drops: records that it drops, whether or not another rule does. edges, records, dropped: of its histogram."""

    reason: str
    signal: str
    threshold: float
    sign: str
    drops: int
    edges: list[float]
    records: list[int]
    dropped: list[int]


@dataclass(frozen=True)
class Change:
    """What a source would gain (or lose) with another threshold in one rule."""

    reason: str
    now: str
    instead: str
    source: str
    records: int
    tokens: int


@dataclass(frozen=True)
class RulesFacts:
    """dropped, kept, clusters: as `prepare.examples` gives them. overlap: repeats of the row's source in the column's,
    "exact + near"."""

    rules: list[RuleFacts]
    changes: list[Change]
    dropped: list[Json]
    kept: list[Json]
    clusters: list[Json]
    names: list[str]
    overlap: list[list[str]]


def rules_facts(corpus: CorpusVersion) -> RulesFacts:
    asked = what_if(corpus)["rules"]
    return RulesFacts(
        rules=[_rule(rule) for rule in asked if rule["histogram"]],
        changes=[change for rule in asked for change in _changes(rule)],
        dropped=[examples(corpus, reason, limit=EXAMPLES, excerpt=EXCERPT) for reason in _largest(corpus)],
        kept=kept(corpus, SAMPLES, EXCERPT),
        clusters=clusters(corpus, CLUSTERS, excerpt=EXCERPT),
        names=corpus.source_names,
        overlap=_overlap(corpus),
    )


def bound(value: float | None, sign: str) -> str:
    """≥ 50, < 0.3; without a number, "no rule"."""
    return "no rule" if value is None else f"{SIGNS.get(sign, sign)} {value:,.6g}"


def _rule(rule: Json) -> RuleFacts:
    histogram = rule["histogram"]
    same = {name: rule[name] for name in ("reason", "signal", "threshold", "sign", "drops")}
    return RuleFacts(**same, edges=histogram["edges"], records=histogram["records"], dropped=histogram["drops"])


def _changes(rule: Json) -> list[Change]:
    now = "" if rule["threshold"] is None else bound(rule["threshold"], rule["sign"])
    return [
        Change(rule["reason"], now, bound(other["threshold"], rule["sign"]), name, gain["records"], gain["tokens"])
        for other in rule["alternatives"]
        for name, gain in other["sources"].items()
        if gain["records"]
    ]


def _largest(corpus: CorpusVersion) -> list[str]:
    """The reasons that dropped most records."""
    total: dict[str, int] = {}
    for found in counts(corpus)["sources"].values():
        for reason, n in found.items():
            total[reason] = total.get(reason, 0) + n
    total.pop("kept", None)
    return sorted(total, key=lambda reason: (-total[reason], reason))[:REASONS]


def _overlap(corpus: CorpusVersion) -> list[list[str]]:
    names = corpus.source_names
    cells = [["" for _ in names] for _ in names]
    for pair in corpus.manifest["counts"]["overlap"]:
        row, column = names.index(pair["source"]), names.index(pair["of"])
        cells[row][column] = f"{pair['exact']:,} + {pair['near']:,}"
    return cells
