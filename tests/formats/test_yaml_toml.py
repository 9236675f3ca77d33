"""YAML and TOML: data where they hold records, word for word where they are texts; nothing in them is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Read = Callable[..., Any]


def places(rows: list[Any]) -> list[Any]:
    return [tuple(json.loads(r["locator"])["bytes"]) for r in rows]


def test_a_configuration_is_its_own_text(read: Read) -> None:
    text = "# how we build\non: [push]\njobs:\n  test: {runs-on: linux}\n"
    outcome = read("ci.yml", text.encode())
    assert outcome.texts == [text.rstrip()]
    assert places(outcome.records) == [(0, len(text))]
    assert outcome.item["media"] == "application/yaml"
    toml = '[tool]\nname = "x"  # é\n'
    assert read("pyproject.toml", toml.encode()).texts == [toml.rstrip()]


def test_each_document_is_a_record_at_its_bytes(read: Read) -> None:
    data = "title: ä\ntext: eins\n---\n# between\ntext: zwei\n...\n---\n- a list\n".encode()
    outcome = read("a.yaml", data)
    assert outcome.texts == ["eins", "zwei", "---\n- a list"]
    assert [json.loads(r["meta"]) for r in outcome.records] == [{"title": "ä"}, {}, {}]
    assert [data[start:end] for start, end in places(outcome.records)] == [
        "title: ä\ntext: eins\n".encode(),
        b"---\n# between\ntext: zwei\n...\n",
        b"---\n- a list\n",
    ]


def test_a_list_of_records_gives_a_record_an_element(read: Read) -> None:
    data = "- text: the first\n  n: 1\n- text: |\n    the\n    second\n".encode("utf-16")
    outcome = read("a.yaml", data)
    assert outcome.texts == ["the first", "the\nsecond"]
    (start, end), (again, _) = places(outcome.records)
    assert data[start:end].decode("utf-16-le").strip() == "text: the first\n  n: 1\n-".removesuffix("\n-")
    assert again >= end


def test_the_recipe_says_what_is_the_text(read: Read) -> None:
    assert read("a.yaml", b"q: 1+1\na: {is: 2}\n", text="{q} = {a}").texts == ['1+1 = {\n  "is": 2\n}']
    assert read("a.toml", b"q = '1+1'\na = 2\n", text="{q} = {a}").texts == ["1+1 = 2"]
    assert read("a.yaml", b"q: x\n", text="missing").reasons == ["no-text"]


def test_words_stay_words_and_dates_stay_as_they_are_written(read: Read) -> None:
    data = (
        b"text: t\nno: no\ntime: 12:30\nday: 2020-01-02\nn: 07\nf: 1.5\ninf: .inf\nz: ~\nb: true\nq: '1'\ntag: !Ref x\n"
    )
    (record,) = read("a.yaml", data).records
    assert json.loads(record["meta"]) == {
        **{"no": "no", "time": "12:30", "day": "2020-01-02", "n": 7, "f": 1.5, "inf": ".inf", "z": None, "b": True},
        **{"q": "1", "tag": "x"},
    }
    (record,) = read("a.toml", b"text = 't'\nday = 2020-01-02\nat = 2020-01-02T03:04:05+02:00\nx = nan\n").records
    assert json.loads(record["meta"]) == {"day": "2020-01-02", "at": "2020-01-02 01:04:05Z", "x": None}


def test_merges_fill_in_what_is_not_there(read: Read) -> None:
    data = b"- &base {text: t, a: 1}\n- {<<: *base, a: 2}\n"
    assert [json.loads(r["meta"]) for r in read("a.yaml", data).records] == [{"a": 1}, {"a": 2}]


def test_a_document_that_does_not_parse_costs_itself(read: Read) -> None:
    data = b"text: one\n---\ntext: [two\n---\ntext: three\n---\nx: {% if %}\n"
    outcome = read("a.yaml", data)
    assert outcome.texts == ["one", "three"]
    assert outcome.reasons == ["bad-yaml", "bad-yaml"]
    assert places(outcome.regions) == [(10, 25), (41, len(data))]
    assert "line 4" in outcome.regions[0]["detail"]


@pytest.mark.parametrize(
    "data",
    [b"a = \n", b"= 1", b"a = 1\na = 2\n", b"day = 2020-13-45\n", b"a = " + b"[" * 5000, b"n = 1" + b"0" * 5000],
)
def test_toml_that_is_none_is_refused(read: Read, data: bytes) -> None:
    assert read("a.toml", data).reasons == ["bad-toml"]


def test_aliases_that_expand_without_end_are_refused(read: Read) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    outcome = read("a.yaml", ("\n".join(lines) + "\ntext: t\n").encode())
    assert (outcome.texts, outcome.reasons) == ([], ["bomb"])
    assert read("a.yaml", b"text: t\na: &a [*a]\n").reasons == ["bad-yaml"]


def test_deep_nesting_is_refused_and_the_next_document_read(read: Read) -> None:
    for deep in (
        b"[" * 100_000,
        b"[" * 900 + b"]" * 900,
        b"- " * 20_000 + b"x",
        b"".join(b" " * n + b"a:\n" for n in range(2000)),
    ):
        outcome = read("a.yaml", b"text: one\n---\n" + deep + b"\n---\ntext: two\n")
        assert outcome.texts[0] == "one" and outcome.texts[-1] == "two"
        assert set(outcome.reasons) <= {"bad-yaml"}


def test_a_tag_that_names_code_builds_nothing(read: Read) -> None:
    data = b'text: !!python/object/apply:os.system ["exit 7"]\n'
    outcome = read("a.yaml", data)
    assert outcome.texts == [data.decode().rstrip()]


def test_bytes_that_are_no_text_refuse_the_file(read: Read) -> None:
    assert read("a.yaml", b"a: \xff\x00\xfe\n").reasons == ["undecodable"]
    assert read("a.yaml", b"\n# \n---\n").reasons in (["empty"], [])
    assert read("a.yaml", b"").reasons == ["empty"]


def test_under_a_map_what_is_no_object_is_a_bad_row(read: Read) -> None:
    data = b"question: why\nanswer: because\n---\njust words\n---\n- {question: q, answer: a}\n- 7\n"
    outcome = read("a.yaml", data, map='"question-answer"')
    assert len(outcome.texts) == 2
    assert outcome.reasons == ["bad-row", "bad-row"]
    assert [r["detail"] for r in outcome.regions] == ["not an object: a string", "not an object: a number"]
