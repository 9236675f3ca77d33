"""The rules of a recipe that judge a record by its scores: length, languages, and the filters as they are written.

`Rules.apply` gives each row of scores the code of the first rule that drops it. A rule knows its reason, the columns it
reads and the thresholds in it, so that `whatif` can ask what another threshold would do. Only texts, chats and
preferences are judged; sets (`rule_sets`) judge texts alone. A filter is the name of a set, or an expression that must
hold. Cost: a few numpy operations a rule over a table; nothing per record.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheaf.corpus.schema import SCORES
from sheaf.corpus.signals import SIGNAL
from sheaf.corpus.version import CorpusVersion
from sheaf.corpus.workspace import Workspace
from sheaf.engine.base import Json
from sheaf.errors import RecipeError
from sheaf.formats.schema import TEXTUAL
from sheaf.prepare import language, score, scorers
from sheaf.prepare.expression import Expression, Kind, parse
from sheaf.prepare.rule_sets import ENGLISH, OTHER, RULE_SETS, SPACELESS, Bound, SignalRule
from sheaf.prepare.scorers import Scorer
from sheaf.recipe import Length, Prepare
from sheaf.recipe_yaml import KeyPath

Truths = NDArray[np.bool_]
_SET_NAME = re.compile(r"[A-Za-z0-9_@.-]+")


class Scored:
    """A table of scores as rules read it: each column as numbers, and what several rules ask, once."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._numbers: dict[str, NDArray[np.float64]] = {}

    def __len__(self) -> int:
        return len(self.table)

    def numbers(self, name: str) -> NDArray[np.float64]:
        if name not in self._numbers:
            self._numbers[name] = self.table[name].cast(pa.float64(), safe=False).to_numpy()
        return self._numbers[name]

    @cached_property
    def textual(self) -> Truths:
        return self.is_in("kind", TEXTUAL)

    @cached_property
    def prose(self) -> Truths:
        return self.is_in("kind", ("text",))

    @cached_property
    def variant(self) -> NDArray[np.int8]:
        """ENGLISH, OTHER or SPACELESS, a row."""
        by_language = np.where(self.is_in("language", ("en",)), ENGLISH, OTHER)
        return np.where(self.numbers("spaceless") > 0.5, SPACELESS, by_language).astype(np.int8)

    def is_in(self, name: str, values: Sequence[str]) -> Truths:
        found = pc.is_in(self.table[name], pa.array(values, self.table.schema.field(name).type))
        return np.asarray(found.to_numpy(), np.bool_)


@dataclass(frozen=True)
class Threshold:
    """A number in a rule that could be another. sign: how the score of a kept record stands to it: ">=", "<", …"""

    signal: str  # the score that is compared; "" if it is not one alone
    value: float
    sign: str
    changed: Callable[[float], Rule]  # the rule with another number here; other variants change in proportion
    share: bool = False  # it cannot be above 1


@dataclass(frozen=True)
class Rule:
    """drops: bool per row, whether this rule drops the record, whatever the others do."""

    reason: str
    columns: tuple[str, ...]
    drops: Callable[[Scored], Truths]
    thresholds: tuple[Threshold, ...] = ()


@dataclass(frozen=True)
class Rules:
    """All rules of `prepare`, in the order in which they decide. scorers: those of the user, by name.

    Raises RecipeError for a set or a score that there is not, and for an expression that says nothing.
    """

    prepare: Prepare
    scorers: Mapping[str, Scorer] = field(default_factory=scorers.registered)

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        for _, error in problems(self.prepare, self.scorers):
            raise error
        return (*_length(self.prepare.length), *_languages(self.prepare.languages), *self._filters())

    def __post_init__(self) -> None:
        _ = self.rules  # mistakes are told now
        if len(self.reasons) > np.iinfo(np.uint16).max:
            raise RecipeError("there are too many filters", where="prepare.filters")

    @cached_property
    def reasons(self) -> list[str]:
        """Code → reason; code 0 is a record that every rule keeps."""
        return ["", *dict.fromkeys(rule.reason for rule in self.rules)]

    @cached_property
    def columns(self) -> list[str]:
        """The columns of SCORES that the rules read."""
        read = {name for rule in self.rules for name in rule.columns} | {"kind"}
        return [name for name in SCORES.names if name in read]

    @cached_property
    def used(self) -> list[Scorer]:
        """The scorers of the user that the rules read, by name."""
        read = {name for rule in self.rules for name in rule.columns}
        return [self.scorers[name] for name in sorted(read & self.scorers.keys())]

    def about(self) -> Json:
        """What, beside the recipe, decides: versions of the sets that are used, and the user's scorers."""
        sets = [RULE_SETS[name] for name in self.prepare.filters if name in RULE_SETS]
        return {"sets": {s.name: s.version for s in sets}, "scorers": [s.about() for s in self.used]}

    def read(self, workspace: Workspace, shard: str) -> pa.Table:
        """A shard's scores as `apply` wants them, row-aligned with its records."""
        table = score.read(workspace, shard, self.columns)
        for scorer in self.used:
            table = table.append_column(scorer.name, scorers.read(workspace, shard, scorer))
        return table

    def apply(self, scores: pa.Table) -> NDArray[np.uint16]:
        """The code of each row: of the first rule, in order, that drops it, or 0. scores: `columns` and the `used`."""
        scored, codes = Scored(scores), np.zeros(len(scores), np.uint16)
        code = {reason: number for number, reason in enumerate(self.reasons)}
        for rule in self.rules:
            codes[rule.drops(scored) & (codes == 0)] = code[rule.reason]
        return codes

    def _filters(self) -> Iterator[Rule]:
        kinds = score_kinds(self.scorers)
        for text in self.prepare.filters:
            yield from filter_rules(text, kinds)


def rules_of(corpus: CorpusVersion) -> Rules:
    """The rules that a version was made by. The user's scorers need not be registered: their scores are there."""
    used = [Scorer(**about) for about in corpus.manifest["stages"]["rules"]["scorers"]]
    return Rules(Prepare.model_validate(corpus.manifest["prepare"]), {scorer.name: scorer for scorer in used})


def problems(prepare: Prepare, known: Mapping[str, Scorer] | None = None) -> Iterator[tuple[KeyPath, RecipeError]]:
    """What is wrong with languages and filters, each with its place in a recipe. known: scorers; default: those
    registered."""
    for number, code in enumerate(prepare.languages):
        if (error := _no_language(code)) is not None:
            yield ("prepare", "languages", number), error
    kinds = score_kinds(scorers.registered() if known is None else known)
    for number, text in enumerate(prepare.filters):
        try:
            filter_rules(text, kinds)
        except RecipeError as error:
            path: KeyPath = ("prepare", "filters", number)
            place = f"prepare.filters, entry {number + 1}"
            yield path, type(error)(error.what, where=place, why=error.why, fix=error.fix)


def _no_language(code: str) -> RecipeError | None:
    """A language that no record is ever told to be in would keep nothing, in silence."""
    known = [name for name in language.codes() if name]
    if code in known:
        return None
    counted = language.VARIETIES.get(code)
    return RecipeError(
        f"no record is ever told to be in '{code}'",
        where="prepare.languages",
        why=f"it is counted to '{counted}'" if counted else f"the languages that are told apart: {', '.join(known)}",
        fix=f"write '{counted}'" if counted else "",
    )


def filter_rules(text: str, kinds: Mapping[str, Kind]) -> list[Rule]:
    """The rules of one entry of `prepare.filters`. Raises RecipeError."""
    if text in RULE_SETS:
        return [
            _signal_rule(text, rule, side) for rule in RULE_SETS[text].rules for side in SIDES if _values(rule, side)
        ]
    if _SET_NAME.fullmatch(text) and not text.startswith("score."):
        near = difflib.get_close_matches(text.lower(), RULE_SETS, 1)
        raise RecipeError(
            f"there is no rule set '{text}'",
            why=f"there are {', '.join(RULE_SETS)}; an expression compares scores, as in score.words > 50",
            fix=f"did you mean '{near[0]}'?" if near else "",
        )
    return [_expression_rule(text, parse(text, kinds), kinds)]


def score_kinds(registered: Mapping[str, Scorer]) -> dict[str, Kind]:
    """What each score is: ours and the user's."""
    found: dict[str, Kind] = {"kind": "text"}
    for signal in SIGNAL.values():
        found[signal.name] = _kind(signal.type)
    for name in registered:
        found[name] = "number"
    return found


def _kind(dtype: pa.DataType) -> Kind:
    if pa.types.is_boolean(dtype):
        return "truth"
    return "number" if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) else "text"


def _length(length: Length) -> Iterator[Rule]:
    if length.min_characters:
        yield _size("too-short", "characters", length.min_characters, least=True)
    if length.min_words:
        yield _size("too-short", "words", length.min_words, least=True)
    if length.max_characters is not None:
        yield _size("too-long", "characters", length.max_characters, least=False)


def _size(reason: str, column: str, value: float, *, least: bool) -> Rule:
    def drops(scored: Scored) -> Truths:
        numbers = scored.numbers(column)
        return scored.textual & ((numbers < value) if least else (numbers > value))

    threshold = Threshold(column, value, ">=" if least else "<=", lambda v: _size(reason, column, v, least=least))
    return Rule(reason, ("kind", column), drops, (threshold,))


def _languages(wanted: Sequence[str]) -> Iterator[Rule]:
    if wanted:
        yield Rule("language", ("kind", "language"), lambda s: s.textual & ~s.is_in("language", wanted))


def _expression_rule(text: str, expression: Expression, kinds: Mapping[str, Kind]) -> Rule:
    def drops(scored: Scored) -> Truths:
        return scored.textual & ~expression.holds(scored.table)

    def turned(start: int) -> Callable[[float], Rule]:
        number = next(t for t in expression.thresholds if t.start == start)
        return lambda v: _expression_rule(text, parse(expression.changed(number, v), kinds), kinds)

    thresholds = tuple(
        Threshold(t.score, t.value, t.sign, turned(t.start), is_share(t.score)) for t in expression.thresholds
    )
    return Rule(f"filter:{text}", ("kind", *expression.names), drops, thresholds)


def is_share(signal: str) -> bool:
    """Whether a score is a part of one."""
    return signal in SIGNAL and SIGNAL[signal].meaning.startswith("share")


SIDES = ("least", "most")


def _signal_rule(rule_set: str, rule: SignalRule, side: str) -> Rule:
    """One side of a rule of a set: what is below the least, or above the most, of each variant."""

    def drops(scored: Scored) -> Truths:
        result = np.zeros(len(scored), np.bool_)
        numbers = scored.numbers(rule.signal)
        for variant, bound in enumerate(rule.bounds):
            value: float | None = getattr(bound, side, None)
            if bound is not None and value is not None:
                result |= (scored.variant == variant) & _outside(numbers, value, side, bound.strict)
        judged = scored.prose & ~scored.is_in("language", rule.never) if rule.never else scored.prose
        return result & judged

    first = _values(rule, side)[0]
    threshold = Threshold(
        rule.signal,
        first,
        _sign(rule, side),
        lambda value: _signal_rule(rule_set, _turned(rule, side, first, value), side),
        is_share(rule.signal),
    )
    return Rule(f"{rule_set}:{rule.signal}", ("kind", "language", "spaceless", rule.signal), drops, (threshold,))


def _sign(rule: SignalRule, side: str) -> str:
    strict = any(bound is not None and bound.strict for bound in rule.bounds)
    return (">" if side == "least" else "<") + ("" if strict else "=")


def _values(rule: SignalRule, side: str) -> list[float]:
    """The bounds on one side, of the variants that have one."""
    found = [getattr(bound, side) for bound in rule.bounds if bound is not None]
    return [value for value in found if value is not None]


def _outside(numbers: NDArray[np.float64], value: float, side: str, strict: bool) -> Truths:
    if side == "least":
        return (numbers <= value) if strict else (numbers < value)
    return (numbers >= value) if strict else (numbers > value)


def _turned(rule: SignalRule, side: str, first: float, value: float) -> SignalRule:
    """The rule with its first bound on one side changed to the value, and those of other variants in proportion."""

    def turned(bound: Bound | None) -> Bound | None:
        old: float | None = getattr(bound, side, None)
        if bound is None or old is None:
            return bound
        new = value * old / first if first else value
        return replace(bound, least=new) if side == "least" else replace(bound, most=new)

    english, other, spaceless = (turned(bound) for bound in rule.bounds)
    return replace(rule, bounds=(english, other, spaceless))
