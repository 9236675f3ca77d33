"""A page gives its main text, in whatever encoding it says it is in, and costs nobody else when it is hostile."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import parse_files

from sheaf.formats.sandbox import ParseOptions, Sandbox
from sheaf.recipe import Limits

Read = Callable[..., Any]


def page(body: bytes, head: bytes = b"") -> bytes:
    return b"<!DOCTYPE html><html><head>" + head + b"</head><body>" + body + b"</body></html>"


def test_a_page_is_one_record_of_all_its_bytes_with_its_title(read: Read) -> None:
    data = page(
        b"<nav><a href=/>Home</a></nav><main><h1>Rye</h1><p>A grain.</p></main>", b"<title>On &amp; rye</title>"
    )
    outcome = read("a.html", data)
    assert outcome.texts == ["Rye\n\nA grain."]
    assert json.loads(outcome.records[0]["locator"]) == {"bytes": [0, len(data)]}
    assert json.loads(outcome.records[0]["meta"]) == {"title": "On & rye"}


@pytest.mark.parametrize(
    ("head", "encoding", "text"),
    [
        ('<meta charset="windows-1251">', "cp1251", "привет, мир"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=shift_jis">', "cp932", "日本語のテキスト"),
        ("<meta charset=gb2312>", "gb18030", "中文的网页"),
        ("<meta charset=iso-8859-1>", "cp1252", "“quoted” café"),
        ("<meta charset=utf-16>", "utf-8", "what a meta says of UTF-16 is not true – as browsers know"),
        ("", "utf-16", "words 中文"),
    ],
)
def test_the_page_s_own_word_for_its_encoding_is_taken(read: Read, head: str, encoding: str, text: str) -> None:
    assert read("a.html", f"<html><head>{head}</head><body><p>{text}</p></body></html>".encode(encoding)).texts == [
        text
    ]


def test_xhtml_is_html(read: Read) -> None:
    prolog = b'<?xml version="1.0" encoding="iso-8859-1"?><!DOCTYPE html PUBLIC "x" "http://x.example/y.dtd">'
    script = b"<script>//<![CDATA[ x<y ]]></script>"
    body = b'<html xmlns="http://www.w3.org/1999/xhtml"><body><p>caf\xe9</p>' + script + b"</body></html>"
    outcome = read("a.xhtml", prolog + body)
    assert outcome.texts == ["café"]
    assert outcome.item["media"] == "text/html"


def test_conditional_comments_are_comments(read: Read) -> None:
    first = b'<!--[if IE]><html class="old"><![endif]--><!DOCTYPE html><html><body><p>shown</p>'
    assert read("a.html", first + b"<!--[if IE]><p>hidden</p><![endif]--></body></html>").texts == ["shown"]
    down = b"<!DOCTYPE html><!--[if gt IE 8]><!--><html><!--<![endif]--><body><p>shown</p></body></html>"
    assert read("a.html", down).texts == ["shown"]


def test_a_bad_byte_in_a_page_of_one_line_costs_itself(read: Read) -> None:
    words = "grüne Wörter ".encode() * 30
    for bad in (b"\xff", b"\0"):
        outcome = read("a.html", page(b"<p>" + words + bad + b"end</p>", b"<meta charset=utf-8>"))
        assert outcome.texts[0].startswith("grüne Wörter grüne")
        assert outcome.texts[0].endswith("end")
        assert "replaced" in outcome.item["notes"]
    assert read("a.html", page(b"<p>\xff\xfe\xfd\0\0\1\2" * 20)).texts == []


def test_scripts_styles_and_what_they_hold_are_no_text(read: Read) -> None:
    body = b"<style>p{}</style><script>var x = '<p>no</p>';</script><template><p>no</p></template><p>yes</p>"
    assert read("a.html", page(body)).texts == ["yes"]


@pytest.mark.parametrize(
    "body",
    [
        b"<span>" * 50_000 + b"<p>words</p>",
        b"<table><tr><td>" * 20_000 + b"<p>words</p>",
        b"<a><b><i><p>" * 3_000 + b"words",
        b"<p>words</p><!-- " + b"x" * 1_000_000,
        b"<p>words</p>" + b"<" * 500_000 + b"&" * 500_000,
    ],
)
def test_deep_and_broken_markup_ends(read: Read, body: bytes) -> None:
    assert "words" in read("a.html", page(body)).texts[0]


def test_a_page_that_takes_for_ever_costs_itself() -> None:
    attributes = b" ".join(b"a%d=1" % n for n in range(300_000))
    with Sandbox(Limits(seconds=1)) as sandbox:
        contents = [("slow.html", page(b"<p " + attributes + b">x</p>")), ("good.html", page(b"<p>kept</p>"))]
        parsed = parse_files(sandbox, contents, ParseOptions())
    assert parsed.regions["reason"].to_pylist() == ["timeout"]
    assert parsed.records["text"].to_pylist() == ["kept"]


def test_a_page_without_words_is_empty_and_one_too_long_is_refused(read: Read) -> None:
    assert read("a.html", page(b"<img src=x>")).reasons == ["empty"]
    assert read("a.html", page(b"<p>x</p>" * 200_000), limits=Limits(record_mb=1)).reasons == ["record-too-large"]
