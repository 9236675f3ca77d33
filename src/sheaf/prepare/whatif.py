"""What other thresholds would do: for each rule of a corpus, what every source would gain or lose, and its histogram.

One rule is changed at a time, the others stay. A record comes back if the changed rule was all that dropped it, and
goes if the changed rule drops it now; what was dropped for anything but a rule, or is kept by `prepare.admit`, stays as
it is. So does what holds a secret or a part of an evaluation file, whose reason a rule's came before. What comes back
could still be a near duplicate, and what goes could have been the kept one of several: those are not decided again.
Cost: one pass over the score columns that the rules read, no text; memory: a shard's scores, and 25 bytes a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheaf.corpus.signals import SIGNAL
from sheaf.corpus.version import CorpusVersion
from sheaf.files import checked
from sheaf.prepare import decontaminate, encode, protect
from sheaf.prepare.rendering import Rendering
from sheaf.prepare.rules import Rule, Rules, Scored, Threshold, rules_of

Json = dict[str, Any]
FACTORS = (0.5, 0.8, 1.25, 2.0)
INSTEAD_OF_ZERO = (1.0, 2.0, 5.0, 10.0)
BINS = 40
_LARGEST = 40  # a count's histogram ends at 2^40


def what_if(corpus: CorpusVersion) -> Json:
    """{"corpus", "rules": [{"reason", "signal", "threshold", "sign", "drops": records that the rule drops, whether or
    not another does, "histogram": {"edges", "records", "drops"} or null, "alternatives": [{"threshold": number, or null
    for no rule, "sources": {NAME: {"records", "tokens"}}, "records", "tokens"}]}]}. Losses are negative.

    edges: one more than the bins; what lies outside counts in the outermost ones. A rule has an entry for each of its
    thresholds; one without any (languages) has one, with threshold null.
    """
    rules = rules_of(corpus)
    questions = [_Question.of(rule, t, len(corpus.source_names)) for rule in rules.rules for t in _thresholds(rule)]
    for piece in _pieces(corpus, rules):
        violated = {id(rule): rule.drops(piece.scored) for rule in rules.rules}
        n_violated = np.zeros(len(piece), np.int32)
        for drops in violated.values():
            n_violated += drops
        for question in questions:
            question.ask(piece, violated[id(question.rule)], n_violated)
    return {"corpus": corpus.digest, "rules": [q.answer(corpus.source_names) for q in questions]}


def alternatives(threshold: Threshold) -> list[float]:
    """Other values that a threshold could sensibly have."""
    value = threshold.value
    found = [value * factor for factor in FACTORS] if value else list(INSTEAD_OF_ZERO)
    if threshold.signal in SIGNAL and pa.types.is_integer(SIGNAL[threshold.signal].type):
        found = [float(round(v)) for v in found]
    if threshold.share:
        found = [v for v in found if v <= 1]
    return sorted({float(f"{v:.6g}") for v in found} - {value})


def edges_of(threshold: Threshold) -> NDArray[np.float64]:
    """float64 (bins + 1,): where the bins of a histogram begin and end."""
    signal = SIGNAL.get(threshold.signal)
    if threshold.share:
        return np.linspace(0, 1, BINS + 1)
    if signal is not None and pa.types.is_integer(signal.type):
        return np.append(0.0, 2.0 ** np.arange(_LARGEST + 1))
    far = 4 * threshold.value or 1.0
    return np.linspace(min(0.0, far), max(0.0, far), BINS + 1)


@dataclass(frozen=True)
class _Piece:
    """Some decided records of one shard. by_rule: dropped by a rule, and by nothing else. kept: and by no rule's
    exception."""

    scored: Scored
    source: NDArray[np.int32]
    tokens: NDArray[np.int64]
    kept: NDArray[np.bool_]
    by_rule: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source)


@dataclass
class _Question:
    """A threshold and its alternatives, and what has been counted. gains: int64 (alternatives, sources, 2)."""

    rule: Rule
    threshold: Threshold | None
    values: list[float | None]  # None: without the rule
    changed: list[Rule | None]
    edges: NDArray[np.float64] | None
    gains: NDArray[np.int64]
    drops: int = 0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), np.int64))  # records, and those dropped

    @staticmethod
    def of(rule: Rule, threshold: Threshold | None, sources: int) -> _Question:
        others = [] if threshold is None else alternatives(threshold)
        changed = [] if threshold is None else [threshold.changed(v) for v in others]
        edges = None if threshold is None or not threshold.signal else edges_of(threshold)
        gains = np.zeros((len(others) + 1, sources, 2), np.int64)
        question = _Question(rule, threshold, [*others, None], [*changed, None], edges, gains)
        if edges is not None:
            question.bins = np.zeros((2, len(edges) - 1), np.int64)
        return question

    def ask(self, piece: _Piece, violated: NDArray[np.bool_], n_violated: NDArray[np.int32]) -> None:
        """Count a piece. violated: by this rule as it is. n_violated: how many rules drop each record."""
        others = n_violated - violated
        self.drops += int(violated.sum())
        for number, rule in enumerate(self.changed):
            now = rule.drops(piece.scored) if rule is not None else np.zeros(len(piece), np.bool_)
            back = piece.by_rule & (others == 0) & violated & ~now
            gone = piece.kept & (n_violated == 0) & now
            for sign, which in ((1, back), (-1, gone)):
                np.add.at(self.gains[number, :, 0], piece.source[which], sign)
                np.add.at(self.gains[number, :, 1], piece.source[which], sign * piece.tokens[which])
        if self.edges is not None and self.threshold is not None:
            values = piece.scored.numbers(self.threshold.signal)
            judged = piece.scored.textual & np.isfinite(values)
            place = np.clip(np.searchsorted(self.edges, values, side="right") - 1, 0, len(self.edges) - 2)
            self.bins[0] += np.bincount(place[judged], minlength=self.bins.shape[1])
            self.bins[1] += np.bincount(place[judged & violated], minlength=self.bins.shape[1])

    def answer(self, names: Sequence[str]) -> Json:
        histogram = None
        if self.edges is not None:
            histogram = {"edges": self.edges.tolist(), "records": self.bins[0].tolist(), "drops": self.bins[1].tolist()}
        return {
            "reason": self.rule.reason,
            "signal": self.threshold.signal if self.threshold else "",
            "threshold": self.threshold.value if self.threshold else None,
            "sign": self.threshold.sign if self.threshold else None,
            "drops": self.drops,
            "histogram": histogram,
            "alternatives": [_alternative(v, g, names) for v, g in zip(self.values, self.gains, strict=True)],
        }


def _alternative(value: float | None, gains: NDArray[np.int64], names: Sequence[str]) -> Json:
    sources = {name: {"records": r, "tokens": t} for name, (r, t) in zip(names, gains.tolist(), strict=True)}
    records, tokens = gains.sum(axis=0).tolist()
    return {"threshold": value, "sources": sources, "records": records, "tokens": tokens}


def _thresholds(rule: Rule) -> Sequence[Threshold | None]:
    return rule.thresholds or (None,)


def _pieces(corpus: CorpusVersion, rules: Rules) -> Iterator[_Piece]:
    decided = _decided(corpus, rules)
    order = np.argsort(decided["shard"], kind="stable")
    bounds = np.searchsorted(decided["shard"], np.arange(len(corpus.shard_names) + 1), sorter=order)
    for number, (start, stop) in enumerate(pairwise(bounds.tolist())):
        if start == stop:
            continue
        here = decided[order[start:stop]]
        name, row = corpus.shard_names[number], here["row"]
        scores = rules.read(corpus.workspace, name).take(pa.array(row)).combine_chunks()
        tokens = _tokens(corpus.workspace.tokens(corpus.rendering, name), row) * here["times"]
        by_rule = (here["state"] == _BY_RULE) & ~np.isin(row, _held(corpus, name))
        yield _Piece(Scored(scores), here["source"], tokens, here["state"] == _KEPT, by_rule)


def _held(corpus: CorpusVersion, shard: str) -> NDArray[np.int64]:
    """The rows of a shard that go even where no rule drops them: the reasons that come after the rules."""
    stages, workspace = corpus.manifest["stages"], corpus.workspace
    found = [encode.refused(workspace, Rendering.from_json(corpus.manifest["rendering"]), shard)[0]]
    if dropped := stages.get("privacy", {}).get("dropped"):
        counts = protect.counts(workspace, shard)
        found += [np.flatnonzero(counts[kind].to_numpy()) for kind in dropped]
    if "evaluation" in stages:
        found.append(decontaminate.hits(workspace, stages["evaluation"]["files"], shard)["row"].to_numpy())
    return np.concatenate(found)


_KEPT, _BY_RULE, _OTHERWISE = 0, 1, 2
# times: how often the record's tokens would be trained on in an epoch.
_DECIDED = np.dtype([("shard", "i4"), ("row", "i4"), ("source", "i4"), ("times", "i4"), ("state", "i1")])


def _decided(corpus: CorpusVersion, rules: Rules) -> NDArray[np.void]:
    """Every decision as _DECIDED, in their order."""
    found = np.zeros(sum(len(batch) for batch in corpus.decision_batches(["kept"])), _DECIDED)
    by_rule = pa.array(rules.reasons[1:], pa.string())
    exact = corpus.manifest["prepare"]["dedup"]["exact"]
    start = 0
    for batch in corpus.decision_batches(["shard", "row", "source", "occurrences", "kept", "reason"]):
        here = found[start : start + len(batch)]
        for name in ("shard", "row", "source"):
            here[name] = batch[name].to_numpy()
        here["times"] = 1 if exact else batch["occurrences"].to_numpy()
        dropped = pc.is_in(batch["reason"], by_rule).to_numpy(zero_copy_only=False)
        kept = batch["kept"].to_numpy(zero_copy_only=False)
        here["state"] = np.where(kept, _KEPT, np.where(dropped, _BY_RULE, _OTHERWISE))
        start += len(batch)
    return found


def _tokens(folder: Path, row: NDArray[np.int32]) -> NDArray[np.int64]:
    """Of some rows of a shard; what would be no document has none."""
    bounds = np.load(checked(folder / "offsets.npy"), allow_pickle=False).astype(np.int64)
    tokens = bounds[row + 1] - bounds[row]
    return np.where(tokens > 1, tokens, 0)
