"""The rules of a recipe: which one decides, whom it judges, and what is wrong with one that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf import api
from sheaf.corpus.schema import DROPS, SCORES
from sheaf.errors import RecipeError
from sheaf.prepare import scorers
from sheaf.prepare.rule_sets import ENGLISH, OTHER, RULE_SETS, SPACELESS
from sheaf.prepare.rules import Rules
from sheaf.prepare.scorers import Scorer
from sheaf.recipe import Length, Prepare

LAX = Length(min_characters=0)


def scores(**columns: list[Any]) -> pa.Table:
    """Scores of texts in English; every column that is not given is 0."""
    n = len(next(iter(columns.values())))
    usual: dict[str, list[Any]] = {"kind": ["text"] * n, "language": ["en"] * n}
    table = {f.name: columns.get(f.name, usual.get(f.name, [0] * n)) for f in SCORES if f.name != "id"}
    extra = {name: values for name, values in columns.items() if name not in table}
    return pa.table(table | extra)


def reasons(prepare: Prepare, table: pa.Table, known: dict[str, Scorer] | None = None) -> list[str]:
    rules = Rules(prepare, known or {})
    codes = rules.apply(table.select([*rules.columns, *(s.name for s in rules.used)]))
    assert codes.dtype == np.uint16
    return [rules.reasons[code] for code in codes]


def test_length_decides_before_languages_and_languages_before_filters() -> None:
    prepare = Prepare(
        length=Length(min_characters=10, max_characters=100, min_words=3),
        languages=("en",),
        filters=("score.lines > 1", "score.bytes > 1"),
    )
    table = scores(
        characters=[5, 50, 500, 50, 50, 50, 50],
        words=[9, 1, 9, 9, 9, 9, 9],
        language=["de", "de", "de", "de", "en", "en", "en"],
        lines=[0, 0, 0, 0, 0, 9, 9],
        bytes=[0, 0, 0, 0, 0, 0, 9],
    )
    assert reasons(prepare, table) == [
        *("too-short", "too-short", "too-long", "language"),
        *("filter:score.lines > 1", "filter:score.bytes > 1", ""),
    ]


def test_filters_decide_in_the_order_in_which_they_are_written() -> None:
    table = scores(words=[1], characters=[9])
    one, two = "score.words > 5", "score.characters > 50"
    assert reasons(Prepare(length=LAX, filters=(one, two)), table) == [f"filter:{one}"]
    assert reasons(Prepare(length=LAX, filters=(two, one)), table) == [f"filter:{two}"]
    assert reasons(Prepare(length=LAX, filters=("gopher", one)), table) == ["gopher:words"]
    assert reasons(Prepare(length=LAX, filters=(one, "gopher")), table) == [f"filter:{one}"]


def test_the_bounds_of_length_are_kept() -> None:
    prepare = Prepare(length=Length(min_characters=10, max_characters=20))
    found = reasons(prepare, scores(characters=[9, 10, 20, 21]))
    assert found == ["too-short", "", "", "too-long"]


def test_pictures_and_sounds_are_not_judged_and_chats_are() -> None:
    prepare = Prepare(length=Length(min_characters=10), languages=("en",), filters=("score.words > 5",))
    table = scores(kind=["image", "audio", "chat", "preference"], characters=[0, 0, 0, 50], language=[""] * 3 + ["en"])
    assert reasons(prepare, table) == ["", "", "too-short", "filter:score.words > 5"]


def test_a_recipe_without_rules_reads_no_signals() -> None:
    rules = Rules(Prepare(length=LAX), {})
    assert rules.columns == ["kind"]
    assert rules.reasons == [""]
    assert rules.apply(pa.table({"kind": ["text", "image"]})).tolist() == [0, 0]


def test_only_the_columns_that_rules_read_are_asked_for() -> None:
    assert Rules(Prepare(filters=("score.words > 5",)), {}).columns == ["kind", "characters", "words"]


def test_every_reason_is_of_a_kind_that_the_ledger_knows() -> None:
    prepare = Prepare(
        length=Length(min_characters=1, max_characters=9),
        languages=("en",),
        filters=(*RULE_SETS, "score.words > 5", "score.lines > 5"),
    )
    found = Rules(prepare, {}).reasons
    assert found[0] == ""
    assert all(reason.partition(":")[0] in DROPS for reason in found[1:])
    assert len(set(found)) == len(found)


def test_a_scorer_of_the_user_is_a_score_like_ours() -> None:
    scorer = Scorer("politeness", "judges:politeness", "1")
    prepare = Prepare(length=LAX, filters=("score.politeness > 0.5 or score.words > 100",))
    rules = Rules(prepare, {"politeness": scorer, "other": Scorer("other", "judges:other", "1")})
    assert rules.used == [scorer]
    assert rules.about() == {"sets": {}, "scorers": [scorer.about()]}
    table = scores(words=[1, 1, 200], politeness=[0.9, 0.1, None])
    assert reasons(prepare, table, {"politeness": scorer}) == ["", f"filter:{prepare.filters[0]}", ""]


def test_what_decides_is_told_with_its_version() -> None:
    assert Rules(Prepare(filters=("gopher", "score.words > 5", "c4")), {}).about() == {
        "sets": {"gopher": RULE_SETS["gopher"].version, "c4": RULE_SETS["c4"].version},
        "scorers": [],
    }


numbers = st.one_of(st.floats(0, 1), st.integers(0, 200_000), st.sampled_from([0.1, 0.12, 0.2, 0.3, 0.67, 0.8, 3, 50]))
rows = st.fixed_dictionaries(
    {
        **{
            f.name: numbers.map(float if pa.types.is_floating(f.type) else int)
            for f in SCORES
            if not pa.types.is_string(f.type) and f.name != "id"
        },
        "kind": st.sampled_from(["text", "text", "chat", "image"]),
        "language": st.sampled_from(["en", "ru", "zh", "th", ""]),
        "spaceless": st.sampled_from([0.0, 0.5, 0.51, 1.0]),
    }
)


def plainly(name: str, row: dict[str, Any]) -> str:
    """The first rule of a set that drops a record, read from the table of sets one number after the other."""
    if row["kind"] != "text":
        return ""
    variant = SPACELESS if row["spaceless"] > 0.5 else ENGLISH if row["language"] == "en" else OTHER
    for rule in RULE_SETS[name].rules:
        bound, value = rule.bounds[variant], row[rule.signal]
        if bound is None or row["language"] in rule.never:
            continue
        least, most = bound.least, bound.most
        if least is not None and (value < least or (bound.strict and value == least)):
            return f"{name}:{rule.signal}"
        if most is not None and (value > most or (bound.strict and value == most)):
            return f"{name}:{rule.signal}"
    return ""


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(RULE_SETS)), st.lists(rows, max_size=8))
def test_sets_decide_as_a_plain_reading_of_their_table(name: str, given_rows: list[dict[str, Any]]) -> None:
    names = [f.name for f in SCORES if f.name != "id"]
    table = pa.table({n: pa.array([r[n] for r in given_rows], SCORES.field(n).type) for n in names})
    assert reasons(Prepare(length=LAX, filters=(name,)), table) == [plainly(name, r) for r in given_rows]


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        (("gophr",), "did you mean 'gopher'?"),
        (("Gopher",), "did you mean 'gopher'?"),
        (("fineweb2",), "did you mean 'fineweb'?"),
        (("nothing",), "there are gopher, c4, fineweb"),
        (("gopher", "score.wrds > 3"), "prepare.filters, entry 2"),
        (("score.politeness > 3",), "there is no score 'politeness'"),
        (("score.id == 'x'",), "there is no score 'id'"),
    ],
)
def test_a_filter_that_cannot_be_is_told(filters: tuple[str, ...], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Rules(Prepare(filters=filters), {})
    assert told in str(caught.value)


@pytest.mark.parametrize(("code", "told"), [("xx", "told apart: "), ("bs", "write 'hr'"), ("yue", "write 'zh'")])
def test_a_language_that_no_record_can_be_in_is_told(code: str, told: str) -> None:
    with pytest.raises(RecipeError, match=f"no record is ever told to be in '{code}'") as caught:
        Rules(Prepare(languages=("en", code)), {})
    assert told in str(caught.value)


def test_mistakes_in_filters_are_told_with_the_line_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "_registered", {})
    recipe = tmp_path / "sheaf.yaml"
    recipe.write_text(
        "name: t\nsources: [{name: a, uri: ./a}]\nprepare:\n  filters:\n    - gopher\n"
        "    - score.wrds > 5\n    - score.words > 'x'\n"
    )
    with pytest.raises(RecipeError) as caught:
        api.load(recipe)
    told = str(caught.value)
    assert f"{recipe}:6: the filter `score.wrds > 5` cannot be read" in told
    assert f"{recipe}:7: the filter `score.words > 'x'` cannot be read" in told
    with pytest.raises(RecipeError) as caught:
        api.load(recipe, ["prepare.filters=[gopher, gophr]"])
    assert caught.value.where == "override of prepare.filters"
    assert api.load(recipe, ["prepare.filters=[gopher]"]).prepare.filters == ("gopher",)
