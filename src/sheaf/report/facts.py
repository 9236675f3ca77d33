"""The figures of the report: from a corpus version and from a run's journal. Reads, computes, draws nothing."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sheaf.console import size
from sheaf.corpus.decided import KEPT
from sheaf.corpus.ledger import sums
from sheaf.corpus.version import CorpusVersion, read_rows
from sheaf.forecast.fact import against_fact
from sheaf.formats.reasons import explain
from sheaf.prepare.examples import shown
from sheaf.report.rules import RulesFacts, rules_facts
from sheaf.report.team import TeamFacts, team_facts
from sheaf.train import journal
from sheaf.train.run import Run
from sheaf.train.setup import order_of
from sheaf.train.supervise import summary

EXAMPLES = 3  # regions shown of each reason
EXCERPT = 160  # characters of a document that the report quotes
REPEATS = 5
_PACKAGES = ("sheaf", "torch", "numpy", "numba", "pyarrow", "tokenizers", "tiktoken", "pydantic")


@dataclass(frozen=True)
class SourceFacts:
    """A source's line in the ledger, in sums. Bytes count items as they lie at their source."""

    name: str
    uri: str
    license: str
    items: int
    bytes_in: int
    kept_bytes: int
    dropped_bytes: int
    quarantined_bytes: int
    records: int
    kept: int
    duplicate: int
    dropped: int
    quarantined: int
    tokens: int
    share: float


@dataclass(frozen=True)
class ReasonFacts:
    """All regions of one reason. examples: rows of quarantine.parquet."""

    reason: str
    meaning: str
    regions: int
    bytes: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Repeat:
    """A record that was seen often."""

    occurrences: int
    text: str


@dataclass(frozen=True)
class PersonalFacts:
    """Personal data of one kind in a source: findings in all its distinct records, and in those that are kept. action:
    what the recipe does with them there."""

    source: str
    kind: str
    action: str
    found: int
    kept: int


@dataclass(frozen=True)
class CorpusFacts:
    digest: str
    documents: int
    vocab_size: int
    sources: list[SourceFacts]
    total: SourceFacts
    reasons: list[ReasonFacts]
    dropped: dict[str, int]
    repeats: list[Repeat]
    recipe_prepare: dict[str, Any]
    rules: RulesFacts | None = None
    decisions: tuple[tuple[str, str, int], ...] = ()  # source, reason ("kept" comes first), distinct records
    personal: tuple[PersonalFacts, ...] = ()


@dataclass(frozen=True)
class EpochFacts:
    """What the mixture has drawn of a source so far. asked, achieved: shares of the tokens, by the weights that were in
    force and by the journal."""

    name: str
    weight: float
    samples: int
    drawn: int
    epochs: float
    most: float | None
    asked: float = 0.0
    achieved: float = 0.0


@dataclass(frozen=True)
class BatchFacts:
    """How full and how even the steps were, on average and at worst. packing: tokens over positions of the samples;
    padding: of what was computed; balance: work of the dearest rank over the mean."""

    name: str
    mean: float
    worst: float


@dataclass(frozen=True)
class ForecastFacts:
    """What was told of a run before it began, beside what came of it, in words. ratio: fact over forecast."""

    name: str
    forecast: str
    fact: str
    ratio: float


@dataclass(frozen=True)
class RunFacts:
    """steps, evaluations: lines of the journals. seconds: where the time went, by name; their sum is the time of the
    steps and of what stood between them. changes: first step and shares, where the weights of sources changed.
    restarts, lost_seconds: how often ranks were started again, what that took."""

    name: str
    started: str
    ranks: int
    restarts: int
    lost_seconds: float
    settings: dict[str, Any]
    recipe: str
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    seconds: dict[str, float]
    epochs: list[EpochFacts]
    batches: list[BatchFacts]
    changes: list[tuple[int, dict[str, float]]]
    result: dict[str, Any]
    versions: dict[str, str]
    team: TeamFacts | None = None
    forecast: tuple[ForecastFacts, ...] = ()


def corpus_facts(corpus: CorpusVersion) -> CorpusFacts:
    ledger = corpus.ledger()
    tokens = corpus.tokens_by_source()
    every = sum(tokens.values())
    sources = [
        _source_facts(spec, ledger.filter(pc.equal(ledger["source"], spec["name"])), tokens[spec["name"]], every)
        for spec in corpus.manifest["sources"]
    ]
    return CorpusFacts(
        digest=corpus.digest,
        documents=len(corpus.documents),
        vocab_size=corpus.vocab_size,
        sources=sources,
        total=_source_facts({"name": "all", "uri": ""}, ledger, every, every),
        reasons=_reasons(corpus.quarantine()),
        dropped=corpus.manifest["counts"]["records"]["dropped"],
        repeats=_repeats(corpus),
        recipe_prepare=corpus.manifest["prepare"],
        rules=rules_facts(corpus),
        decisions=_decisions(corpus.manifest["counts"]["sources"]),
        personal=_personal(corpus.manifest),
    )


def run_facts(run: Run, corpus: CorpusVersion) -> RunFacts:
    steps, evaluations = journal.read(run.folder), journal.read_evaluations(run.folder)
    recipe = run.folder / "recipe.yaml"
    return RunFacts(
        name=run.folder.name,
        started=run.record["started"],
        ranks=run.ranks,
        **summary(run.folder),
        settings=run.record["settings"],
        recipe=recipe.read_text() if recipe.exists() else "",
        steps=steps,
        evaluations=evaluations,
        seconds=time_spent(steps, evaluations),
        epochs=_epochs(run, corpus, steps),
        batches=_batches(steps),
        changes=[(step["step"], step["weights"]) for step in steps if step["step"] and "weights" in step],
        result=run.result or {},
        versions={**versions(), **run.record["versions"]},
        team=team_facts(steps),
        forecast=_forecast(run.folder),
    )


def _forecast(folder: Path) -> tuple[ForecastFacts, ...]:
    found = against_fact(folder) or {}
    return tuple(
        ForecastFacts(name.replace("_", " ").removesuffix(" bytes"), *_written(name, told), told["ratio"])
        for name, told in found.items()
    )


def _written(name: str, told: dict[str, float]) -> tuple[str, str]:
    def write(value: float) -> str:
        return size(value) if name.endswith("_bytes") else f"{value:.3g} s"

    return write(told["forecast"]), write(told["fact"])


def time_spent(steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by name: every `…_seconds` of the journal's steps, what is left of `seconds`, and the evaluations."""
    names = sorted({key for step in steps for key in step if key.endswith("_seconds")})
    parts = {name.removesuffix("_seconds"): sum(float(s.get(name, 0.0)) for s in steps) for name in names}
    whole = sum(float(s.get("seconds", 0.0)) for s in steps)
    result = {"computing": max(0.0, whole - sum(parts.values())), **parts}
    if evaluations:
        result["evaluation"] = sum(float(e.get("seconds", 0.0)) for e in evaluations)
    return {name: value for name, value in result.items() if value > 0}


def versions() -> dict[str, str]:
    """Of this machine and of what the figures depend on."""
    found = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _source_facts(spec: dict[str, Any], ledger: pa.Table, tokens: int, every: int) -> SourceFacts:
    total = sums(ledger)
    return SourceFacts(
        name=spec["name"],
        uri=spec["uri"],
        license=spec.get("license") or "",
        items=total["items"],
        bytes_in=total["in"],
        kept_bytes=total["kept"],
        dropped_bytes=total["dropped"],
        quarantined_bytes=total["quarantined"],
        records=total["records"],
        kept=total["records_kept"],
        duplicate=total["duplicate"],
        dropped=total["dropped_records"],
        quarantined=total["regions"],
        tokens=tokens,
        share=tokens / every if every else 0.0,
    )


def _decisions(sources: Mapping[str, Any]) -> tuple[tuple[str, str, int], ...]:
    return tuple(
        (name, reason, n)
        for name, told in sources.items()
        for reason, n in sorted(told["decisions"].items(), key=lambda one: (one[0] != KEPT, -one[1], one[0]))
    )


def _personal(manifest: Mapping[str, Any]) -> tuple[PersonalFacts, ...]:
    asked = manifest["prepare"]["privacy"]
    return tuple(
        PersonalFacts(name, kind, asked.get(kind, "keep"), n["all"], n["kept"])
        for name, kinds in manifest["counts"].get("privacy", {}).items()
        for kind, n in kinds.items()
    )


def _reasons(quarantine: pa.Table) -> list[ReasonFacts]:
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in quarantine.to_pylist():
        by_reason.setdefault(row["reason"], []).append(row)
    found = [
        ReasonFacts(reason, explain(reason), len(rows), sum(r["bytes"] for r in rows), rows[:EXAMPLES])
        for reason, rows in by_reason.items()
    ]
    return sorted(found, key=lambda r: (-r.bytes, r.reason))


def _repeats(corpus: CorpusVersion) -> list[Repeat]:
    """The most repeated of the kept texts. Empty where repeats are kept: then rows are not documents."""
    if not corpus.manifest["prepare"]["dedup"]["exact"]:
        return []
    most: list[dict[str, Any]] = []
    for batch in corpus.decision_batches(["shard", "row", "kept", "occurrences"]):
        often = batch.filter(pc.and_(batch["kept"], pc.greater(batch["occurrences"], 1))).to_pylist()
        most = sorted([*most, *often], key=lambda row: -row["occurrences"])[: 4 * REPEATS]
    found: list[Repeat] = []
    for row in most:
        (record,) = read_rows(corpus.shard_path(row["shard"]), [row["row"]], ["text"])
        if record["text"]:  # pictures and sounds have none
            found.append(Repeat(row["occurrences"], shown(record["text"], EXCERPT)))
    return found[:REPEATS]


def source_shares(steps: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Share of a source in the tokens of each of these steps."""
    tokens: list[dict[str, int]] = [step.get("source_tokens", {}) for step in steps]
    return [here.get(name, 0) / (sum(here.values()) or 1) for here in tokens]


def _epochs(run: Run, corpus: CorpusVersion, steps: Sequence[dict[str, Any]]) -> list[EpochFacts]:
    """How often each source has been gone through after these steps."""
    order = order_of(run.recipe, corpus, "train")
    slots = len(steps) * order.batch
    drawn, asked = order.mixture.counts(slots), order.mixture.asked_tokens(slots)
    tokens = Counter[str]()
    for step in steps:
        tokens.update(step.get("source_tokens", {}))
    result: list[EpochFacts] = []
    for number, name in enumerate(corpus.source_names):
        entry, samples = order.entries.get(name), int(order.pack.source_samples[number])
        weight = entry.weight if entry else 1.0
        most = entry.max_epochs if entry else None
        drawn_here = int(drawn[number])
        shares = float(asked[number] / (asked.sum() or 1.0)), tokens[name] / (tokens.total() or 1)
        epochs = drawn_here / samples if samples else 0.0
        result.append(EpochFacts(name, weight, samples, drawn_here, epochs, most, *shares))
    return result


def _batches(steps: Sequence[dict[str, Any]]) -> list[BatchFacts]:
    facts: list[BatchFacts] = []
    for name, worst in (("packing", min), ("padding", max), ("balance", max)):
        values = [float(step[name]) for step in steps if name in step]
        if values:
            facts.append(BatchFacts(name, sum(values) / len(values), worst(values)))
    return facts
