"""Text, tables, JSON, mail and pages become the records that they hold, at the bytes where they lie."""

from __future__ import annotations

import json
import mailbox
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Read = Callable[..., Any]


def places(outcome: Any) -> list[tuple[int, int]]:
    return [tuple(json.loads(r["locator"])["bytes"]) for r in outcome.records]


@pytest.mark.parametrize(
    ("name", "media"),
    [("a.txt", "text/plain"), ("a.md", "text/markdown"), ("a.py", "text/x-python"), ("README", "text/plain")],
)
def test_a_text_file_is_one_record_of_all_its_bytes(read: Read, name: str, media: str) -> None:
    outcome = read(name, "Grüße\n".encode())
    assert outcome.texts == ["Grüße"]
    assert places(outcome) == [(0, 8)]
    assert outcome.records[0]["media"] == outcome.item["media"] == media
    assert outcome.records[0]["bytes"] == 8


def test_an_empty_or_blank_file_is_refused_as_empty(read: Read) -> None:
    assert read("a.txt", b"").reasons == ["empty"]
    assert read("a.txt", b" \n\n").reasons == ["empty"]


def test_the_digest_is_of_the_item_s_bytes(read: Read) -> None:
    assert read("a.txt", b"x").item["digest"] == read("b.md", b"x").item["digest"] != read("a.txt", b"y").item["digest"]


@pytest.mark.parametrize(
    ("name", "data", "media"),
    [
        ("a.txt", b"<!DOCTYPE html><html><body><p>words of the page</p></body></html>", "text/html"),
        ("a.html", b'{"text": "not a page"}', "application/json"),
        ("a.csv", b'{"text":"one"}\n{"text":"two"}\n', "application/x-ndjson"),
        ("a.json", b'{"text":"one"}\n{"text":"two"}\n', "application/x-ndjson"),
    ],
)
def test_content_decides_over_the_suffix_and_the_item_says_so(read: Read, name: str, data: bytes, media: str) -> None:
    outcome = read(name, data)
    assert outcome.item["media"] == media, outcome.regions
    assert media in outcome.item["notes"]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"\x7fELF\2\1\1" + bytes(64), "ELF"),
        (b"SQLite format 3\0" + bytes(84), "SQLite"),
        (b"\0\1\0\0Standard Jet DB\0" + bytes(80), "Access"),
        (b"FORM\0\0\x0f.AIFFCOMM" + bytes(80), "AIFF"),
        (bytes(range(256)) * 4, "unknown binary data"),
    ],
)
def test_what_is_not_read_is_refused_by_name(read: Read, data: bytes, detail: str) -> None:
    outcome = read("thing", data)
    assert outcome.reasons == ["unsupported"]
    assert detail in outcome.regions[0]["detail"]
    assert outcome.regions[0]["bytes"] == len(data)


def test_bytes_that_are_no_text_in_a_text_file_are_undecodable(read: Read) -> None:
    assert read("a.txt", bytes(range(256)) * 4).reasons == ["undecodable"]
    assert read("a.txt", b"words\0and\0more").reasons == ["undecodable"]


def test_a_few_bad_lines_are_cut_out_of_utf8_text(read: Read) -> None:
    lines = [f"Zeile {i} über etwas".encode() for i in range(300)]
    lines[120] = b"kaputt \xff\xfe"
    data = b"\n".join(lines)
    outcome = read("a.txt", data)
    assert outcome.reasons == ["undecodable"]
    at = data.index(b"kaputt")
    assert json.loads(outcome.regions[0]["locator"]) == {"bytes": [at, at + 10]}
    assert outcome.regions[0]["bytes"] == 10
    assert "kaputt" not in outcome.texts[0] and "Zeile 121" in outcome.texts[0]


def test_html_gives_its_main_text_and_title(read: Read) -> None:
    page = "<html><head><meta charset='iso-8859-1'><title>Caf\xe9 &amp; Bar</title><script>var x</script></head><body>"
    page += (
        "<nav>Home About</nav><main><p>" + "The text of the page, d\xe9j\xe0 vu. " * 10 + "</p></main></body></html>"
    )
    outcome = read("a.html", page.encode("latin-1"))
    assert "déjà vu" in outcome.texts[0] and "var x" not in outcome.texts[0]
    assert json.loads(outcome.records[0]["meta"]) == {"title": "Café & Bar"}


def test_json_lines_go_on_after_a_bad_line(read: Read) -> None:
    data = b'{"text":"one","n":1}\n\n{"text": nope}\n{"text":"\xff"}\n{"text":"two"}\n{"n":NaN}\n"three"'
    outcome = read("a.jsonl", data)
    assert outcome.texts == ["one", "two", "three"]
    assert outcome.reasons == ["bad-json", "undecodable", "bad-json"]
    assert [data[a:b].strip() for a, b in places(outcome)] == [b'{"text":"one","n":1}', b'{"text":"two"}', b'"three"']
    assert json.loads(outcome.records[0]["meta"]) == {"n": 1}
    assert outcome.item["structure_bytes"] == 1
    assert "column" in outcome.regions[0]["detail"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"])
def test_rows_are_at_their_bytes_in_every_unicode_encoding(read: Read, encoding: str) -> None:
    rows = [{"text": "naïve 維基 😀 row", "n": i} for i in range(5)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    whole = json.dumps(rows, ensure_ascii=False)
    table = "text,n\r\n" + "".join(f'"naïve 維基 😀\nrow",{i}\r\n' for i in range(5))
    for name, text in (("a.jsonl", lines), ("a.json", whole), ("a.csv", table)):
        data = text.encode(encoding)
        outcome = read(name, data)
        assert len(outcome.texts) == 5 and outcome.reasons == [], name
        plain = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}.get(encoding, encoding)
        for (start, end), text in zip(places(outcome), outcome.texts, strict=True):
            assert "naïve 維基 😀" in data[start:end].decode(plain) and "naïve 維基 😀" in text


@pytest.mark.parametrize(
    ("document", "texts"),
    [
        ([{"text": "a"}, {"body": "b"}], ["a", "b"]),
        ({"count": 2, "items": [{"text": "a"}, {"text": "b"}]}, ["a", "b"]),
        ({"title": "T", "content": "c"}, ["c"]),
        ({"name": "x", "n": 3, "ok": True}, ["name: x\nn: 3\nok: true"]),
        (["one", "two"], ["one\ntwo"]),
        ("alone", ["alone"]),
        ([[1, 2], [3]], ["[\n  [\n    1,\n    2\n  ],\n  [\n    3\n  ]\n]"]),
    ],
)
def test_json_documents(read: Read, document: object, texts: list[str]) -> None:
    assert read("a.json", json.dumps(document).encode()).texts == texts


@pytest.mark.parametrize(
    "document", ["[1,]", "{'a':1}", "[NaN]", '{"a":1}}', '["\\ud800"]', "[" * 100_000, '[{"text":"a"},]', "[01]"]
)
def test_what_is_not_json_is_refused_whole(read: Read, document: str) -> None:
    outcome = read("a.json", document.encode())
    assert (outcome.texts, outcome.reasons) == ([], ["bad-json"])
    assert outcome.regions[0]["bytes"] == len(document)


def test_templates_and_columns_choose_the_text(read: Read) -> None:
    data = b'{"id":7,"title":"T","body":"B","tags":["x"]}\n{"id":8,"title":"U"}\n'
    outcome = read("a.jsonl", data, text="{title}\n\n{body}")
    assert outcome.texts == ["T\n\nB"]
    assert json.loads(outcome.records[0]["meta"]) == {"id": 7, "tags": ["x"]}
    assert (outcome.reasons, outcome.regions[0]["detail"]) == (["no-text"], "there is no field 'body'")
    assert read("a.jsonl", data, text="title").texts == ["T", "U"]
    assert read("a.jsonl", data, text="{title.__class__}").reasons == ["no-text", "no-text"]


def test_rows_of_a_query_are_located_by_their_key(read: Read) -> None:
    outcome = read("rows.jsonl", b'{"id":7,"lang":"en","text":"T"}\n', key=("id", "lang"))
    assert json.loads(outcome.records[0]["locator"]) == {"key": {"id": 7, "lang": "en"}, "row": 0}


def test_rows_with_one_key_keep_apart(read: Read) -> None:
    outcome = read("rows.jsonl", b'{"id":7,"text":"S"}\n\n{"id":7,"text":"T"}\n', key=("id",))
    assert [json.loads(r["locator"])["row"] for r in outcome.records] == [0, 2]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_tables_with_any_separator_and_quoted_newlines(read: Read, mark: str) -> None:
    rows = [["text", "size", "name"], [f'said ""yes""{mark}\nand more', '5" disk', "a"], ["two", "6", "b"]]
    cells = [rows[0], ['"' + rows[1][0] + '"', *rows[1][1:]], rows[2]]
    data = "".join(mark.join(row) + "\r\n" for row in cells).encode()
    outcome = read("a.csv", data)
    assert outcome.texts == [f'said "yes"{mark}\nand more', "two"]
    assert json.loads(outcome.records[0]["meta"]) == {"size": '5" disk', "name": "a"}
    assert b"".join(data[a:b] for a, b in places(outcome)) == data[data.index(b"\r\n") + 2 :]


def test_a_quote_that_is_never_closed_refuses_what_it_swallows(read: Read) -> None:
    outcome = read("a.csv", b'text,n\none,1\n"two,2\nthree,3\n')
    assert outcome.texts == ["one"]
    assert outcome.reasons == ["bad-csv"]
    assert outcome.regions[0]["bytes"] == len(b'"two,2\nthree,3\n')


def test_a_row_that_cannot_be_decoded_costs_itself_alone(read: Read) -> None:
    rows = [f"zeile,größe {i}".encode() for i in range(20)]
    rows[7] = b"zeile,\xff\xfe"
    outcome = read("a.csv", b"a,text\n" + b"\n".join(rows))
    assert len(outcome.texts) == 19 and outcome.reasons == ["undecodable"]


def test_a_table_in_a_legacy_encoding_is_read(read: Read) -> None:
    rows = "text,n\n" + "".join(f"Каждое утро в городе просыпаются люди и идут на работу,{i}\n" for i in range(20))
    for encoding in ("cp1251", "koi8-r"):
        outcome = read("a.csv", rows.encode(encoding))
        assert outcome.texts[0] == "Каждое утро в городе просыпаются люди и идут на работу"
    chinese = "text,n\n" + "".join(f"维基百科是一个自由内容公开编辑的百科全书,{i}\n" for i in range(20))
    assert read("a.csv", chinese.encode("gb18030")).texts[3] == "维基百科是一个自由内容公开编辑的百科全书"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=30),
    st.sampled_from(["jsonl", "csv", "txt", "mbox"]),
)
def test_any_bytes_are_accounted_for(read: Read, lines: list[bytes], suffix: str) -> None:
    read(f"a.{suffix}", b"\n".join(lines))  # the fixture checks the sum


def message(number: int) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["Subject"] = "Ann <ann@example.org>", f"Grüße Nr. {number}"
    mail["Date"] = "Mon, 05 Oct 2026 10:00:00 +0000"
    mail.set_content(f"Hello, this is message {number}.\nFrom here on: más.\n")
    return mail


def test_a_message_is_its_subject_and_text(read: Read) -> None:
    mail = message(1)
    mail.add_alternative("<p>the same as html</p>", subtype="html")
    outcome = read("a.eml", bytes(mail))
    assert outcome.texts == ["Grüße Nr. 1\n\nHello, this is message 1.\nFrom here on: más."]
    meta = json.loads(outcome.records[0]["meta"])
    assert meta["from"] == "Ann <ann@example.org>" and meta["date"].startswith("Mon, 05 Oct")


def test_html_that_stands_beside_text_is_not_lost(read: Read) -> None:
    mail = message(3)
    mail.make_mixed()
    page = EmailMessage()
    page.set_content("<p>a page of its own, which says other things</p>", subtype="html")
    mail.attach(page)
    outcome = read("a.eml", bytes(mail))
    assert len(outcome.texts) == 2 and "a page of its own" in outcome.texts[0]
    assert outcome.records[0]["bytes"] > 0 and outcome.members == ["part-1", ""]


def test_html_with_pictures_is_the_same_text_again(read: Read) -> None:
    mail = message(4)
    mail.add_alternative("<p>the same as html <img src='cid:1'></p>", subtype="html")
    html_part = list(mail.iter_parts())[1]
    assert isinstance(html_part, EmailMessage)
    html_part.add_related(b"\x89PNG\r\n\x1a\n" + bytes(20), "image", "png", cid="<1>")
    mail.make_mixed()
    mail.add_attachment("<p>sent along</p>", subtype="html", filename="a.html")
    outcome = read("a.eml", bytes(mail))
    assert outcome.members == ["a.html", ""] and "html" not in outcome.texts[1]
    assert outcome.reasons == ["corrupt"]


def test_attachments_are_read_like_files(read: Read) -> None:
    mail = message(2)
    mail.add_attachment("notes about the thing\n", filename="notes.txt")
    mail.add_attachment(b"\x89PNG\r\n\x1a\n" + bytes(100), "image", "png", filename="p.png")
    outcome = read("a.eml", bytes(mail))
    assert "notes about the thing" in outcome.texts
    assert outcome.members == ["notes.txt", ""]
    assert [(r["member"], r["reason"]) for r in outcome.regions] == [("p.png", "corrupt")]


def test_an_mbox_gives_each_message_at_its_bytes(read: Read, tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "box")
    for i in range(5):
        box.add(message(i))
    box.close()
    data = (tmp_path / "box").read_bytes()
    outcome = read("box", data)
    assert [t.splitlines()[0] for t in outcome.texts] == [f"Grüße Nr. {i}" for i in range(5)]
    assert all("\nFrom here on" in t for t in outcome.texts)
    assert b"".join(data[a:b] for a, b in places(outcome)) == data
    assert all(data[a:b].startswith(b"From ") for a, b in places(outcome))


def test_an_object_of_nothing_but_nested_values_is_its_strings_by_their_paths(read: Read) -> None:
    row = {"place": {"name": "Oslo", "at": [59.9, 10.7]}, "words": ["fjord", {"old": "Christiania"}], "none": None}
    said = "place.name: Oslo\nwords: fjord\nwords.old: Christiania"
    for name in ("a.json", "a.jsonl"):
        outcome = read(name, json.dumps(row).encode())
        assert (outcome.texts, outcome.reasons) == ([said], [])
        assert json.loads(outcome.records[0]["meta"]) == {"none": None}


def test_nested_values_without_a_string_and_conversations_are_no_text(read: Read) -> None:
    rows = [{"at": [59.9, 10.7]}, {"messages": [{"role": "user", "content": "Hi"}]}, {"a": {"b": " "}}]
    outcome = read("a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    assert outcome.reasons == ["no-text"] * 3
    assert "conversation in 'messages'" in outcome.regions[1]["detail"] and "`map`" in outcome.regions[1]["detail"]


def test_the_strings_of_a_deep_object_are_found_without_recursion(read: Read) -> None:
    deep = '{"a":' * 400 + '"here"' + "}" * 400
    assert read("a.jsonl", deep.encode()).texts == [".".join("a" * 400) + ": here"]
