"""Expressions over scores: what they mean is what a plain reading of them means, and every mistake is told."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.errors import RecipeError
from sheaf.prepare.expression import DEEPEST, LONGEST, Kind, parse

KINDS: Mapping[str, Kind] = {"words": "number", "ratio": "number", "language": "text", "lorem": "truth"}
ROWS: list[dict[str, Any]] = [
    {"words": 0, "ratio": 0.0, "language": "en", "lorem": True},
    {"words": 50, "ratio": 0.5, "language": "zh", "lorem": False},
    {"words": 51, "ratio": math.nan, "language": "", "lorem": None},
    {"words": None, "ratio": -3.25, "language": None, "lorem": True},
    {"words": 2**53, "ratio": 1e300, "language": 'it\'s "quoted\\"', "lorem": False},
]
SCORES = pa.table(
    {
        "words": pa.array([r["words"] for r in ROWS], pa.int64()),
        "ratio": pa.array([r["ratio"] for r in ROWS], pa.float64()),
        "language": pa.array([r["language"] for r in ROWS], pa.string()),
        "lorem": pa.array([r["lorem"] for r in ROWS], pa.bool_()),
    }
)

Row = Mapping[str, Any]
Meaning = Callable[[Row], Any]


def holds(text: str, scores: pa.Table = SCORES) -> list[bool]:
    return parse(text, KINDS).holds(scores).tolist()


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, KINDS)
    return str(caught.value)


# The twin: the same expression as text, and as a Python function of one row. None stands for what is missing.


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _computed(sign: str, left: Meaning, right: Meaning) -> Meaning:
    functions = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

    def meaning(row: Row) -> Any:
        a, b = left(row), right(row)
        if _missing(a) or _missing(b) or (sign == "/" and b == 0):
            return None
        return functions[sign](float(a), float(b))

    return meaning


def _compared(sign: str, left: Meaning, right: Meaning) -> Meaning:
    functions = {
        **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
        **{"==": operator.eq, "!=": operator.ne},
    }

    def meaning(row: Row) -> bool:
        a, b = left(row), right(row)
        return not _missing(a) and not _missing(b) and functions[sign](a, b)

    return meaning


def _of(name: str) -> Meaning:
    return lambda row: row[name]


def _constant(value: Any) -> Meaning:
    return lambda _: value


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


Pair = tuple[str, Meaning]
literals = st.one_of(st.integers(0, 100), st.floats(0, 1e6, allow_nan=False)).map(
    lambda v: (repr(v), _constant(float(v)))
)
numbers: st.SearchStrategy[Pair] = st.recursive(
    st.one_of(literals, st.sampled_from(["words", "ratio"]).map(lambda n: (f"score.{n}", _of(n)))),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", _computed(t[1], t[0][1], t[2][1]))
        ),
        inner.map(lambda p: (f"-{p[0]}", _computed("*", _constant(-1.0), p[1]))),
    ),
    max_leaves=4,
)
words = st.sampled_from(["en", "zh", "", 'it\'s "quoted\\"'])


def _chain(parts: tuple[Pair, str, Pair, str, Pair]) -> Pair:
    (a, fa), one, (b, fb), two, (c, fc) = parts
    first, second = _compared(one, fa, fb), _compared(two, fb, fc)
    return f"{a} {one} {b} {two} {c}", lambda row: first(row) and second(row)


def _member(parts: tuple[list[str], bool]) -> Pair:
    values, negated = parts
    text = f"score.language {'not ' if negated else ''}in [{', '.join(map(_quoted, values))}]"
    return text, lambda row: row["language"] is not None and (row["language"] in values) != negated


signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
truths: st.SearchStrategy[Pair] = st.recursive(
    st.one_of(
        st.tuples(numbers, signs, numbers, signs, numbers).map(_chain),
        st.tuples(st.sampled_from(["==", "!="]), words).map(
            lambda t: (f"score.language {t[0]} {_quoted(t[1])}", _compared(t[0], _of("language"), _constant(t[1])))
        ),
        st.tuples(st.lists(words, min_size=1, max_size=3), st.booleans()).map(_member),
        st.just(("score.lorem", lambda row: bool(row["lorem"]))),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: (f"({t[0][0]} and {t[1][0]})", lambda r: t[0][1](r) and t[1][1](r))),
        st.tuples(inner, inner).map(lambda t: (f"({t[0][0]} or {t[1][0]})", lambda r: t[0][1](r) or t[1][1](r))),
        inner.map(lambda p: (f"not ({p[0]})", lambda r: not p[1](r))),
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(truths)
def test_an_expression_means_what_its_words_mean(pair: Pair) -> None:
    text, meaning = pair
    if "score." in text and len(text) <= LONGEST:
        assert holds(text) == [bool(meaning(row)) for row in ROWS], text


def test_and_binds_closer_than_or_and_not_closer_than_and() -> None:
    assert holds("score.words == 0 or score.words == 50 and score.ratio == 9") == [True, False, False, False, False]
    assert holds("not score.words == 0 and score.lorem") == [False, False, False, True, False]
    assert holds("score.words + 1 * 2 == 52") == [False, True, False, False, False]
    assert holds("score.words - 1 - 1 == 48") == [False, True, False, False, False]


def test_what_is_missing_makes_every_comparison_false() -> None:
    for sign in ("<", "<=", ">", ">=", "==", "!="):
        assert holds(f"score.words {sign} 1")[3] is False
        assert holds(f"score.ratio {sign} 1")[2] is False
    assert holds("score.language != 'en'")[3] is False
    assert holds("score.language not in ['en']")[3] is False
    assert holds("score.words not in [1]")[3] is False
    assert holds("not score.words > 1")[3] is True


def test_a_division_by_zero_is_missing() -> None:
    assert holds("1 / score.words != 7") == [False, True, True, False, True]
    assert holds("1 / score.words > 0 or 1 / score.words <= 0")[0] is False


def test_no_rows_are_no_answers() -> None:
    assert holds("score.words > 50 and score.language in ['en']", SCORES.slice(0, 0)) == []


def test_a_condition_of_constants_is_spread_over_the_rows() -> None:
    assert holds("1 > 2 or score.words >= 0 or 2 > 1") == [True] * 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("score.word > 3", "at character 7: there is no score 'word'"),
        ("score.word > 3", "did you mean 'score.words'?"),
        ("words > 3", "write score.words"),
        ("score.words > 'fifty'", "at character 15: a number cannot be compared with a text"),
        ("score.language < 'en'", "texts have no order"),
        ("score.words = 3", "at character 13: expected a comparison or the end, found '='"),
        ("score.words = 3", "write == to compare"),
        ("score.words > 3 && score.lorem", "write `and`"),
        ("score.words > 3 || score.lorem", "write `or`"),
        ("!score.lorem", "write `not`"),
        ("1 > 0", "reads no score"),
        ("score.words", "a number stands alone"),
        ("score.words > >", "at character 15: expected a number, a string, score.NAME or `(`, found '>'"),
        ("(score.words > 3", "at character 17: expected `)`, found the end"),
        ("score.language == “en”", "straight quotes"),
        ("score.language == 'en", "a string without its end"),
        ("score.words > 1e999", "too large a number"),
        ("score.words in []", "an empty list"),
        ("score.words in ['a']", "a number cannot be in a list with a text"),
        ("score.words in [score.ratio]", "a list holds numbers or strings only"),
        ("score.words > 3 score.ratio", "at character 17: expected the end"),
        ("score.lorem > 3", "cannot be compared"),
        ("score.lorem == score.lorem", "what is true or false is not compared"),
        ("score.words + 'a' > 3", "only numbers can be computed with"),
        ("score.words > 3 or", "found the end"),
        ("", "found the end"),
        ("   ", "found the end"),
        ("score", "expected `.` and the name of a score"),
        ("score.", "expected the name of a score"),
    ],
)
def test_a_mistake_is_told_with_its_character(text: str, told: str) -> None:
    assert told in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true') == 0",
        "score.__class__ == 'x'",
        "score.words.__class__ == 'x'",
        "score['words'] > 3",
        "(lambda: 1)() == score.words",
        "[x for x in score.words] == 1",
        "score.words > 3; import os",
        "score.words if 1 else 2",
        "f'{score.words}' == 'a'",
        "score.words > 3 # a comment",
        "score.words ** 9999 > 3",
        "score.words > 0x10",
        "score.words > 3\x00",
        "score.wоrds > 3",  # with a Cyrillic letter
    ],
)
def test_nothing_of_python_is_in_it(text: str) -> None:
    refusal(text)


def test_nesting_and_length_are_limited() -> None:
    assert holds("(" * DEEPEST + "score.words == 0" + ")" * DEEPEST)[0] is True
    assert "nested too deeply" in refusal("(" * (DEEPEST + 1) + "score.words == 0" + ")" * (DEEPEST + 1))
    assert "nested too deeply" in refusal("not " * 100 + "score.lorem")
    assert "nested too deeply" in refusal("-" * 100 + "score.words > 1")
    assert "too long" in refusal("score.words > 1 or " * 1000 + "score.lorem")
    assert holds("score.words + 0" + " + 0" * 240 + " == 0")[0] is True  # long, and not deep


@settings(deadline=None, max_examples=500)
@given(st.text("score.wdsratilngue<>=!()[]+-*/'\"\\, 0123456789andortin\n", max_size=60))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        found = parse(text, KINDS)
    except RecipeError:
        return
    assert len(found.holds(SCORES)) == len(ROWS)


def test_the_thresholds_in_it_are_found_and_can_be_changed() -> None:
    expression = parse("50 < score.words <= 1_000 and score.ratio / 2 > -0.5 or score.words in [3]", KINDS)
    found = [(t.value, t.score, t.sign) for t in expression.thresholds]
    assert found == [(50.0, "words", ">"), (1000.0, "words", "<="), (-0.5, "", ">")]
    assert expression.changed(expression.thresholds[1], 2e9).startswith("50 < score.words <= 2e+09 and")
    assert "> -0.25 or" in expression.changed(expression.thresholds[2], -0.25)
    changed = parse(expression.changed(expression.thresholds[0], 51), KINDS)
    assert changed.thresholds[0].value == 51
