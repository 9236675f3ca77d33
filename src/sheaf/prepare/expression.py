"""The small language of `prepare.filters`: what must hold for a record's scores, or it is dropped.

    score.words > 50 and score.language in ['en', 'zh'] and not score.bytes / score.characters >= 3.5

Numbers, strings, `score.NAME`, + - * /, comparisons (chained as in mathematics), `in [..]`, `not in [..]`, `and`, `or`,
`not`, parentheses. That is all of it: no call, no attribute, no index, so that text from a recipe can compute nothing
else. It is read by a recursive descent that knows the kind of every score (number, text or truth), so that every
mistake, also `score.words > 'fifty'`, is told when the recipe is read. Nesting and length are limited.

A score that is missing (null, NaN, a division by zero) makes every comparison with it false, `!=` and `not in` too.
Numbers are float64: counts are exact up to 2^53. Cost: one numpy or Arrow call a node over a whole table of scores.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheaf.prepare.expression_tokens import INSTEAD, ExpressionError, Token, refuse, tokens

Kind = Literal["number", "text", "truth"]
LONGEST = 1000  # characters
DEEPEST = 20  # parentheses, nots and signs inside each other
_TURNED = str.maketrans("<>", "><")  # 50 < x is x > 50


@dataclass(frozen=True)
class Number:
    """text[start:end] of an expression is a number that a score is compared with: a threshold."""

    start: int
    end: int
    value: float
    score: str  # the only score on the other side, or "" if it is not one score alone
    sign: str  # how the other side, written first, is compared with it: ">", "<=", "==", …


@dataclass(frozen=True)
class Expression:
    """A condition on scores. names: of the scores that it reads. thresholds: the numbers that it compares them with."""

    text: str
    names: tuple[str, ...]
    thresholds: tuple[Number, ...]
    _evaluate: Callable[[pa.Table], Any]

    def holds(self, scores: pa.Table) -> NDArray[np.bool_]:
        """bool per row. scores: a table with the columns `names`."""
        with np.errstate(all="ignore"):  # what is no number compares as false, by definition
            return np.broadcast_to(self._evaluate(scores), len(scores))

    def changed(self, number: Number, value: float) -> str:
        """The text with another number in the place of this one."""
        return f"{self.text[: number.start]}{value:.6g}{self.text[number.end :]}"


def parse(text: str, kinds: Mapping[str, Kind]) -> Expression:
    """Read an expression. kinds: of every score that there is. Raises ExpressionError."""
    if len(text) > LONGEST:
        raise ExpressionError(
            f"a filter of {len(text):,} characters is too long",
            why=f"at most {LONGEST:,} are read",
            fix="split it: every filter of the list must hold, as if they were joined by `and`",
        )
    return _Parser(text, kinds).whole()


@dataclass(frozen=True)
class _Operand:
    kind: Kind
    start: int
    end: int
    evaluate: Callable[[pa.Table], Any]  # float64, bool or Arrow strings, one a row; or one float, str for all
    literal: float | None = None
    score: str = ""


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne},
}
_OWN = "a score of your own is registered from Python, by sheaf.register_scorer"
_WORDS = ("and", "or", "not", "in", "score")


class _Parser:
    """One method a rule of the grammar, the loosest binding first."""

    def __init__(self, text: str, kinds: Mapping[str, Kind]) -> None:
        self.text, self.kinds = text, kinds
        self.tokens = list(tokens(text))
        self.at = 0
        self.depth = 0
        self.names: dict[str, None] = {}
        self.thresholds: list[Number] = []

    def whole(self) -> Expression:
        found = self._truth(self._either())
        if self._next.kind != "end":
            self._expected("the end, or `and`, `or`, or a comparison")
        if not self.names:
            refuse(self.text, 0, "a filter that reads no score", fix="compare a score, as in score.words > 50")
        return Expression(self.text, tuple(self.names), tuple(self.thresholds), found.evaluate)

    def _either(self) -> _Operand:
        return self._joined("or", self._all, np.logical_or)

    def _all(self) -> _Operand:
        return self._joined("and", self._negation, np.logical_and)

    def _joined(self, word: str, below: Callable[[], _Operand], join: Callable[[Any, Any], Any]) -> _Operand:
        first = below()
        if not self._is(word):
            return first
        parts = [self._truth(first)]
        while self._take(word):
            parts.append(self._truth(below()))
        evaluates = [p.evaluate for p in parts]

        def evaluate(scores: pa.Table) -> Any:
            result = evaluates[0](scores)
            for other in evaluates[1:]:
                result = join(result, other(scores))
            return result

        return _Operand("truth", first.start, parts[-1].end, evaluate)

    def _negation(self) -> _Operand:
        start = self._next.start
        if not self._take("not"):
            return self._comparison()
        inner = self._deeper(lambda: self._truth(self._negation())).evaluate
        return _Operand("truth", start, self._last_end, lambda scores: np.logical_not(inner(scores)))

    def _comparison(self) -> _Operand:
        operands, signs = [self._sum()], list[str]()
        if self._is("in") or (self._is("not") and self.tokens[self.at + 1].value == "in"):
            return self._membership(operands[0])
        while self._next.value in _COMPARE and self._next.kind == "sign":
            signs.append(self._take_any().value)
            operands.append(self._sum())
        if not signs and self._next.value in INSTEAD:
            self._expected("a comparison or the end")
        if not signs:
            return operands[0]
        links: list[Callable[[pa.Table], Any]] = []
        for left, sign, right in zip(operands, signs, operands[1:], strict=False):
            self._comparable(left, sign, right)
            self._note_threshold(left, sign, right)
            links.append(_link(left, sign, right))
        return _Operand(
            "truth",
            operands[0].start,
            operands[-1].end,
            lambda scores: np.logical_and.reduce(np.broadcast_arrays(*[link(scores) for link in links])),
        )

    def _comparable(self, left: _Operand, sign: str, right: _Operand) -> None:
        if left.kind != right.kind:
            self._refuse(right.start, f"a {left.kind} cannot be compared with a {right.kind}", _KIND_HELP)
        if left.kind == "truth":
            self._refuse(left.start, "what is true or false is not compared", "use it as it is, or with `not`")
        if left.kind == "text" and sign not in ("==", "!="):
            self._refuse(left.start, f"texts have no order: '{sign}' is for numbers", "use ==, != or in ['a', 'b']")

    def _note_threshold(self, left: _Operand, sign: str, right: _Operand) -> None:
        turned = sign.translate(_TURNED)
        for literal, other, told in ((left, right, turned), (right, left, sign)):
            if literal.literal is not None and other.literal is None:
                self.thresholds.append(Number(literal.start, literal.end, literal.literal, other.score, told))

    def _membership(self, left: _Operand) -> _Operand:
        negated = self._take("not")
        self._require("in", "`in`")
        self._require("[", "a list in [brackets]")
        choices: list[_Operand] = []
        while not self._is("]"):
            choices.append(self._choice(left))
            if not self._take(","):
                break
        self._require("]", "`,` or `]`")
        if not choices:
            self._refuse(self._last_end - 1, "an empty list holds nothing", "write at least one value in it")
        if left.kind == "number":
            return _Operand("truth", left.start, self._last_end, _number_in(left, choices, negated))
        return _Operand("truth", left.start, self._last_end, _text_in(left, choices, negated))

    def _choice(self, left: _Operand) -> _Operand:
        found = self._sign()
        constant = found.literal is not None or (found.kind == "text" and not found.score)
        if not constant:
            self._refuse(found.start, "a list holds numbers or strings only", "join comparisons by `or` instead")
        if found.kind != left.kind:
            self._refuse(found.start, f"a {left.kind} cannot be in a list with a {found.kind}", _KIND_HELP)
        return found

    def _sum(self) -> _Operand:
        return self._arithmetic({"+": operator.add, "-": operator.sub}, self._product)

    def _product(self) -> _Operand:
        return self._arithmetic({"*": operator.mul, "/": _divide}, self._sign)

    def _arithmetic(self, signs: dict[str, Callable[[Any, Any], Any]], below: Callable[[], _Operand]) -> _Operand:
        first = below()
        rest: list[tuple[Callable[[Any, Any], Any], Callable[[pa.Table], Any]]] = []
        while self._next.kind == "sign" and self._next.value in signs:
            function = signs[self._take_any().value]
            rest.append((function, self._number(below()).evaluate))
        if not rest:
            return first
        begin = self._number(first).evaluate

        def evaluate(scores: pa.Table) -> Any:
            result = begin(scores)
            for function, operand in rest:
                result = function(result, operand(scores))
            return result

        return _Operand("number", first.start, self._last_end, evaluate)

    def _sign(self) -> _Operand:
        start = self._next.start
        if not self._take("-"):
            return self._atom()
        inner = self._deeper(lambda: self._number(self._sign()))
        literal = None if inner.literal is None else -inner.literal
        return _Operand("number", start, inner.end, lambda scores: -inner.evaluate(scores), literal)

    def _atom(self) -> _Operand:
        token = self._next
        if token.kind == "number":
            return self._literal_number(self._take_any())
        if token.kind == "text":
            value = re.sub(r"\\(.)", r"\1", self._take_any().value[1:-1])
            return _Operand("text", token.start, token.end, lambda _: value)
        if self._take("score"):
            self._require(".", "`.` and the name of a score")
            return self._score(token.start)
        if self._take("("):
            inner = self._deeper(self._either)
            self._require(")", "`)`")
            return _Operand(inner.kind, token.start, self._last_end, inner.evaluate)
        self._expected("a number, a string, score.NAME or `(`")

    def _literal_number(self, token: Token) -> _Operand:
        value = float(token.value.replace("_", ""))
        if not math.isfinite(value):
            self._refuse(token.start, f"{token.value} is too large a number", "")
        return _Operand("number", token.start, token.end, lambda _: value, value)

    def _score(self, start: int) -> _Operand:
        name = self._take_any() if self._next.kind == "word" else self._expected("the name of a score")
        if name.value not in self.kinds:
            known = sorted(self.kinds)
            near = difflib.get_close_matches(name.value, known, 1)
            fix = f"did you mean 'score.{near[0]}'?" if near else f"{_OWN}; there are: {', '.join(known)}"
            self._refuse(name.start, f"there is no score '{name.value}'", fix)
        self.names[name.value] = None
        kind, column = self.kinds[name.value], name.value
        return _Operand(kind, start, name.end, _COLUMN[kind](column), score=column)

    def _truth(self, found: _Operand) -> _Operand:
        if found.kind != "truth":
            self._refuse(
                found.start, f"a {found.kind} stands alone, where a comparison is needed", "as in score.words > 50"
            )
        return found

    def _number(self, found: _Operand) -> _Operand:
        if found.kind != "number":
            self._refuse(found.start, f"only numbers can be computed with, and this is a {found.kind}", "")
        return found

    def _deeper(self, inner: Callable[[], _Operand]) -> _Operand:
        self.depth += 1
        if self.depth > DEEPEST:
            self._refuse(self._next.start, "it is nested too deeply", f"at most {DEEPEST} levels are read")
        found = inner()
        self.depth -= 1
        return found

    @property
    def _next(self) -> Token:
        return self.tokens[self.at]

    @property
    def _last_end(self) -> int:
        return self.tokens[self.at - 1].end

    def _is(self, value: str) -> bool:
        return self._next.kind in ("word", "sign") and self._next.value == value

    def _take(self, value: str) -> bool:
        found = self._is(value)
        self.at += found
        return found

    def _take_any(self) -> Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def _require(self, value: str, meaning: str) -> None:
        if not self._take(value):
            self._expected(meaning)

    def _expected(self, meaning: str) -> NoReturn:
        token = self._next
        found = f"'{token.value}'" if token.value else "the end"
        near = difflib.get_close_matches(token.value, [*_WORDS, *self.kinds], 1) if token.kind == "word" else []
        fix = INSTEAD.get(token.value, "")
        if token.value in self.kinds:
            fix = f"write score.{token.value}"
        elif not fix and near and near[0] != token.value:
            fix = f"did you mean '{'score.' if near[0] in self.kinds else ''}{near[0]}'?"
        self._refuse(token.start, f"expected {meaning}, found {found}", fix)

    def _refuse(self, at: int, why: str, fix: str) -> NoReturn:
        refuse(self.text, at, why, fix)


_KIND_HELP = "strings stand in 'quotes', numbers do not"


def _divide(left: Any, right: Any) -> Any:
    return np.divide(left, np.where(np.equal(right, 0), np.nan, right))


def _link(left: _Operand, sign: str, right: _Operand) -> Callable[[pa.Table], Any]:
    """One comparison of two operands; false where one of them is missing."""
    compare = _COMPARE[sign]
    if left.kind == "text":
        return lambda scores: _same_text(left.evaluate(scores), right.evaluate(scores), sign == "==")
    if sign != "!=":  # NaN compares as false by itself
        return lambda scores: compare(left.evaluate(scores), right.evaluate(scores))

    def differ(scores: pa.Table) -> Any:
        a, b = left.evaluate(scores), right.evaluate(scores)
        return np.not_equal(a, b) & ~np.isnan(a) & ~np.isnan(b)

    return differ


def _same_text(left: Any, right: Any, wanted: bool) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return (left == right) is wanted
    return _told((pc.equal if wanted else pc.not_equal)(left, right))


def _number_in(left: _Operand, choices: list[_Operand], negated: bool) -> Callable[[pa.Table], Any]:
    values = np.array([c.literal for c in choices], np.float64)

    def evaluate(scores: pa.Table) -> Any:
        given = left.evaluate(scores)
        return (np.isin(given, values) != negated) & ~np.isnan(given)

    return evaluate


def _text_in(left: _Operand, choices: list[_Operand], negated: bool) -> Callable[[pa.Table], Any]:
    values: list[str] = [c.evaluate(pa.table({})) for c in choices]

    def evaluate(scores: pa.Table) -> Any:
        given = left.evaluate(scores)
        if isinstance(given, str):
            return (given in values) != negated
        inside = _told(pc.is_in(given, pa.array(values, given.type)))
        return (inside != negated) & _told(pc.is_valid(given))

    return evaluate


def _told(truths: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    """Arrow truths as numpy; what is not known is false."""
    return np.asarray(pc.fill_null(truths, False).to_numpy(zero_copy_only=False), np.bool_)


def _numbers(column: str) -> Callable[[pa.Table], Any]:
    return lambda scores: scores[column].cast(pa.float64(), safe=False).to_numpy()


def _texts(column: str) -> Callable[[pa.Table], Any]:
    return lambda scores: scores[column].cast(pa.string())


def _truths(column: str) -> Callable[[pa.Table], Any]:
    return lambda scores: _told(scores[column].combine_chunks())


_COLUMN: dict[Kind, Callable[[str], Callable[[pa.Table], Any]]] = {
    **{"number": _numbers, "text": _texts, "truth": _truths},
}
