"""The survey's page answers its six questions, also with nothing, and shows hostile names without harm."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sheaf.api import folder_recipe, scan
from sheaf.scan.page import render, type_name

QUESTIONS = (
    "What is here",
    "What would be lost, and why",
    "What is there more than once",
    "What is private",
    "What to write into the recipe",
    "What it will cost",
)
HOSTILE = "<script>alert(1)</script>'\"{{ 7 * 7 }}"
VOID = {"meta", "br", "img"}


class Checker(HTMLParser):
    """Every tag that opens is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


def checked(page: str) -> list[str]:
    """The questions of a well-formed page."""
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker.headings


def estimate(value: float, error: float = 0.0) -> dict[str, float]:
    return {"value": value, "error": error}


def survey(**source: Any) -> dict[str, Any]:
    broken = {"items": 1, "bytes": estimate(900_000, 9), "examples": [{"path": HOSTILE, "detail": HOSTILE}]}
    found = {
        **{"uri": HOSTILE, "items": 3, "bytes": 3_000_000, "looked_at": 2, "unavailable": 1},
        **{"records": estimate(2, 1), "tokens": estimate(1000, 10)},
        "types": {HOSTILE: {"items": 3, "bytes": 3_000_000}},
        **{"encodings": {"utf-8": 1.0}, "languages": {"en": 0.99, HOSTILE: 0.01}, "kinds": {"text": 1.0}},
        "copies": {"share": 0.5, "error": 0.1},
        "privacy": {"email": {**estimate(7, 2), "examples": [HOSTILE]}},
        "licences": {HOSTILE: 1},
        "broken": {"corrupt": broken},
        **{"refused": {"not-a-file": 2}, "notes": {HOSTILE: 1}},
    }  # fmt: skip
    proposal = {**{"recipe": HOSTILE, "confidence": 0.9, "fits": 9, "rows": 9, "why": HOSTILE}, "preview": [HOSTILE]}
    return {
        "sources": {"a": {**found, **source}},
        **{"problems": [HOSTILE], "exit_code": 3, "between": [], "shared_records": []},
        "repeated": [{"bytes": 5, "count": 9, "items": [["a", HOSTILE], ["a", "x"]]}],
        "mappings": {"a": [{"files": [HOSTILE], "rows": 9, "proposals": [proposal]}]},
        "forecast": {
            **{n: estimate(5, 1) for n in ("tokens", "text_bytes", "disk_bytes", "memory_bytes", "seconds")},
            "workers": 1,
        },
        "sample": {"share": 0.02, "items": 2, "bytes": 9, "of_items": 3, "of_bytes": 3_000_000},
        "seconds": 0.5,
    }


def test_every_question_has_its_answer() -> None:
    page = render(survey())
    assert tuple(checked(page)) == QUESTIONS
    for answer in ("3 MB", "corrupt", "900 kB", "contradicts itself", "50.0%", "email", "1 items of the sample"):
        assert answer in page


def test_hostile_names_are_shown_and_do_nothing() -> None:
    page = render(survey())
    assert "<script" not in page and "49" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert page.count("&lt;script&gt;") >= 12 and "default-src 'none'" in page


@pytest.mark.parametrize("items", [0, 3])
def test_where_there_is_nothing_the_page_says_nothing(tmp_path: Path, items: int) -> None:
    for n in range(items):
        (tmp_path / f"{n}.txt").write_text(f"An ordinary text without anything that is odd, number {n}.")
    page = render(scan(folder_recipe(tmp_path), workers=1))
    assert tuple(checked(page)) == QUESTIONS
    assert page.count("Nothing that the sample shows") == 3
    assert ("no source holds an item" in page) == (items == 0)


def test_many_types_are_folded_away_and_none_is_lost() -> None:
    types = {f"application/x-kind{n}": {"items": 1, "bytes": 100 - n} for n in range(40)}
    page = render(survey(types=types))
    assert "28 more types" in page and all(f">kind{n}<" in page for n in range(40))
    checked(page)


@pytest.mark.parametrize(
    ("media", "name"),
    [
        ("application/vnd.apache.parquet", "apache.parquet"),
        ("application/octet-stream", "unknown binary data"),
        ("image/png", "image: png"),
        ("text/html", "html"),
        ("unknown", "unknown"),
    ],
)
def test_types_are_named_as_people_say_them(media: str, name: str) -> None:
    assert type_name(media) == name
