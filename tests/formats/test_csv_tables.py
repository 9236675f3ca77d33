"""Tables as they are found: the separator, the header or its absence, and no row lost."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from sheaf.formats.csv_dialect import dialect

Read = Callable[..., Any]
PROSE = [
    "Well, it rained, and then, after a while, it stopped",
    "no comma here",
    "first, second",
    "one, two, three, four, five, six, seven, eight",
    "salt, pepper, oil",
    "a, b, c, d",
]


def delimiter(text: str) -> str:
    return dialect(text.encode(), "utf-8", "text/csv", None).delimiter


def header(rows: list[list[str]], template: str | None = None) -> bool:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return dialect(out.getvalue().encode(), "utf-8", "text/csv", template).header


@pytest.mark.parametrize("mark", [";", "|", "\t"])
@pytest.mark.parametrize("quoted", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("names", [["id", "text"], []])
def test_commas_in_prose_do_not_cut_other_tables(read: Read, mark: str, quoted: Any, names: list[str]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark, quoting=quoted)
    writer.writerows([names] if names else [])
    writer.writerows([number, prose] for number, prose in enumerate(PROSE))
    outcome = read("a.csv", out.getvalue().encode())
    if names:
        assert outcome.texts == PROSE
    else:
        assert outcome.texts == [f"column1: {i}\ncolumn2: {prose}" for i, prose in enumerate(PROSE)]


def test_many_commas_do_not_outweigh_the_header() -> None:
    rows = "".join(f"{i};salt, pepper, oil, bread\n" for i in range(10))
    assert [delimiter(f"id{mark}text\n" + rows.replace(";", mark)) for mark in ";|\t"] == [";", "|", "\t"]


def test_semicolons_in_prose_do_not_cut_a_table_of_commas() -> None:
    assert delimiter('id,text\n1,"a; b; c"\n2,"d; e"\n3,f; g; h\n') == ","
    assert delimiter("id,text,n\n1,a; b,5\n2,c; d,6\n") == ","


def test_decimal_commas_do_not_cut_a_table_of_semicolons() -> None:
    assert delimiter("price;amount\n1,50;2,5\n3,20;4,5\n") == ";"


def test_a_separator_by_which_some_rows_differ_loses() -> None:
    assert delimiter("a,b,c|d\n1,2,3|4\n5|6\n7|8\n") == "|"


def test_a_title_above_a_table_does_not_hide_its_separator() -> None:
    assert delimiter("Sales of the year\nname;n\na, b;1\nc;2\nd;3\n") == ";"


def test_quoted_line_ends_belong_to_their_row() -> None:
    assert delimiter('id;text\n1;"a, b\nc, d\ne, f"\n2;"g, h\ni, j"\n') == ";"


def test_without_a_header_every_row_is_a_record(read: Read) -> None:
    data = b"The first sentence, and its end.|5\nThe second sentence goes here.|6\nThe third one is here too.|7\n"
    outcome = read("a.csv", data)
    assert outcome.texts[0] == "column1: The first sentence, and its end.\ncolumn2: 5"
    assert len(outcome.texts) == 3 and outcome.item["structure_bytes"] == 0
    assert "no header" in outcome.item["notes"]
    assert len(read("a.csv", b"oslo,5\nbergen,6\n").texts) == 2


def test_one_row_is_a_record(read: Read) -> None:
    assert read("a.csv", b"alone,in the file\n").texts == ["column1: alone\ncolumn2: in the file"]
    assert read("a.csv", b"id,text\n").reasons == ["empty"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["id", "text"], ["a", "b"]], True),
        ([["a", "b", "c"], ["1", "2", "3"]], True),
        ([["", "a"], ["0", "x y"], ["1", "z w"], ["2", "v u"]], True),  # the index of pandas
        ([["born", "who"], ["1999-01-02", "Ann"], ["1998-03-04", "Bob"], ["2001-05-06", "Eve"]], True),
        ([["city", "motto"], ["Oslo", "a good city"], ["Rome", "all roads"], ["Bonn", "on the Rhine"]], True),
        ([["First name", "Story"], *[[n, "word " * 20] for n in ("Ann", "Bob", "Eve")]], True),
        ([["1", "2"], ["3", "4"]], False),
        ([["ann", "bob"], ["cyd", "dan"], ["eve", "fay"]], False),
        ([["spam", "You won."], ["ham", "See you at the station at five, as always, my dear friend."]], False),
        ([["name", "Ann"], ["born", "1999"], ["name", "Bob"]], False),  # keys and values
        ([["n/a", "x"], ["1", "y"], ["2", "z"]], False),
        ([["a", "a"], ["1", "2"]], False),
    ],
)
def test_a_header_reads_like_names_and_unlike_the_rows(rows: list[list[str]], expected: bool) -> None:
    assert header(rows) is expected


def test_columns_that_the_recipe_names_must_be_in_the_header(read: Read) -> None:
    data = b"kind,words\nx,y\nz,w\n"
    assert header([["kind", "words"], ["x", "y"]]) is False
    assert read("a.csv", data, text="words").texts == ["y", "w"]
    assert read("a.csv", data, text="{kind}: {words}").texts == ["x: y", "z: w"]
    assert read("a.csv", data, text="other").reasons == ["no-text", "no-text"]
    assert read("a.csv", b"x,y\nz,w\n", text="column2").texts == ["y", "w"]


def test_columns_with_one_name_do_not_hide_each_other(read: Read) -> None:
    outcome = read("a.csv", b"text,n,n\nwords,1,2\n", text="text")
    assert json.loads(outcome.records[0]["meta"]) == {"n": "1", "n_": "2"}
    outcome = read("a.csv", b"id,column3\n1,2,3\n")
    assert outcome.texts == ["id: 1\ncolumn3: 2\ncolumn3_: 3"]


def test_a_header_that_cannot_be_read_is_not_replaced_by_the_first_row(read: Read) -> None:
    rows = "".join(f"{i},Wörter für größere Mühen\n" for i in range(30)).encode()
    outcome = read("a.csv", b"id\xff\xfe,text\n" + rows)
    assert len(outcome.texts) == 30 and outcome.reasons == ["undecodable"]


def test_long_tables_are_judged_by_their_beginning() -> None:
    source = random.Random(1)
    lines = "".join(f"{i};{', '.join('word' for _ in range(source.randrange(9)))}\n" for i in range(20_000))
    found = dialect(("id;text\n" + lines).encode(), "utf-8", "text/csv", None)
    assert (found.delimiter, found.header) == (";", True)


@pytest.mark.parametrize(
    ("line", "delimiter"), [("12,5;3,25;7,1", ";"), ("Rome, Italy;1,5", ";"), ("a,b;c,d", ","), ("1,2;3,x", ",")]
)
def test_commas_of_decimals_and_of_prose_do_not_cut_where_semicolons_do(line: str, delimiter: str) -> None:
    found = dialect(f"{line}\n".encode() * 9, "utf-8", "text/csv", ())
    assert found.delimiter == delimiter
