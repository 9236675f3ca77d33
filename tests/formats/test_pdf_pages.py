"""A PDF gives a record a page; what it cannot give is named, and what it tries to do to its reader fails."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import parse_files
from pdf_maker import deflated, lines, locked, pdf, stream

from sheaf.formats.sandbox import ParseOptions, Sandbox
from sheaf.recipe import Limits

Read = Callable[..., Any]
FORM = b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> /XObject << %s >> >>"
SHOW_X0 = b"/Resources << /XObject << /X0 1000 0 R >> >>"


def places(outcome: Any) -> list[Any]:
    return [json.loads(r["locator"]) for r in outcome.records]


def attached(name: bytes, file: bytes) -> tuple[dict[int, bytes], bytes]:
    spec = b"<< /Type /Filespec /F (%s) /EF << /F 1001 0 R >> >>" % name
    catalog = b"/Names << /EmbeddedFiles << /Names [(%s) 1000 0 R] >> >>" % name
    return {1000: spec, 1001: file}, catalog


def test_each_page_is_a_record_at_its_number(read: Read) -> None:
    outcome = read("a.pdf", pdf([lines("Hello", "world"), lines("the second page")]))
    assert outcome.texts == ["Hello\nworld", "the second page"]
    assert places(outcome) == [{"page": 1}, {"page": 2}]
    assert outcome.item["media"] == "application/pdf"
    assert sum(r["bytes"] for r in outcome.records) == outcome.size


def test_title_and_author_are_of_every_page(read: Read) -> None:
    info = {1000: b"<< /Title (On Wheat) /Author (A. Farmer) >>"}
    outcome = read("a.pdf", pdf([lines("one"), lines("two")], info, trailer=b"/Info 1000 0 R"))
    assert [json.loads(r["meta"]) for r in outcome.records] == [{"title": "On Wheat", "author": "A. Farmer"}] * 2


def test_content_decides_and_a_pdf_may_begin_behind_a_mark(read: Read) -> None:
    assert read("a.txt", pdf([lines("words")])).texts == ["words"]
    assert read("a.pdf", b"\xef\xbb\xbf" + pdf([lines("words")])).texts == ["words"]
    assert read("a.txt", b"A text about the mark\n%PDF-1.4 of such files.").item["media"] == "text/plain"


def test_words_that_a_line_breaks_are_whole_and_ligatures_are_letters(read: Read) -> None:
    page = b"BT /F1 12 Tf 72 700 Td (a long sen-) Tj 0 -14 Td (tence with words) Tj ET"
    assert "sentence" in read("a.pdf", pdf([page])).texts[0]


def test_a_page_that_only_shows_a_picture_is_in_the_ledger_and_a_blank_one_is_structure(read: Read) -> None:
    outcome = read("a.pdf", pdf([lines("words"), b"0 0 100 100 re f", b"0 0 9 9 re f", b""]))
    assert outcome.texts == ["words"]
    assert [(r["reason"], json.loads(r["locator"])) for r in outcome.regions] == [("no-text", {"page": [2, 3]})]
    assert outcome.item["structure_bytes"] > 0
    assert read("a.pdf", pdf([b"", b""])).reasons == ["empty"]


def test_comments_and_filled_fields_are_read_with_their_page(read: Read) -> None:
    notes = b"[<< /Type /Annot /Subtype /Text /Rect [0 0 9 9] /Contents (a remark) >> " + (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (Ada) /Rect [0 0 9 9] >>]"
    )
    outcome = read("a.pdf", pdf([lines("the page")], {1000: notes}, page=b"/Annots 1000 0 R"))
    assert outcome.texts == ["the page\n\na remark\n\nAda"]


def test_an_attached_file_is_a_member(read: Read) -> None:
    more, catalog = attached(b"note.txt", deflated(b"words in a note"))
    outcome = read("a.pdf", pdf([lines("the page")], more, catalog))
    assert [(r["member"], r["text"]) for r in outcome.records] == [("", "the page"), ("note.txt", "words in a note")]


def test_a_pdf_in_a_pdf_is_read_by_page(read: Read) -> None:
    more, catalog = attached(b"inner.pdf", stream(pdf([lines("inner page")])))
    outcome = read("a.pdf", pdf([lines("outer page")], more, catalog))
    assert [(r["member"], r["locator"]) for r in outcome.records] == [("", '{"page":1}'), ("inner.pdf", '{"page":1}')]


def test_a_password_is_asked_for_by_name_and_an_empty_one_opens(read: Read) -> None:
    assert read("a.pdf", locked(lines("secret"), b"pw")).reasons == ["encrypted"]
    assert read("a.pdf", locked(lines("for everybody"), b"")).texts == ["for everybody"]


def test_a_page_that_cannot_be_read_costs_itself_only(read: Read) -> None:
    data = pdf([lines("one"), lines("two"), lines("three")]).replace(b"12 0 R", b"99 0 R")
    outcome = read("a.pdf", data)
    assert (outcome.texts, outcome.reasons) == (["one", "three"], ["corrupt"])
    assert json.loads(outcome.regions[0]["locator"]) == {"page": 2}


def test_a_damaged_table_of_contents_is_made_anew_and_a_file_without_its_end_is_truncated(read: Read) -> None:
    data = pdf([lines("one"), lines("two")])
    assert read("a.pdf", data.replace(b"startxref\n", b"startxref\n7")).texts == ["one", "two"]
    assert read("a.pdf", data.replace(b"xref\n0 1", b"xxxx\n0 1")).texts == ["one", "two"]
    assert read("a.pdf", data[: data.index(b"xref")]).reasons == ["truncated"]
    assert read("a.pdf", data.replace(b"/Type", b"/Tape").replace(b"/Root", b"/Boot")).reasons == ["corrupt"]


def test_a_text_of_signs_without_meaning_is_refused(read: Read) -> None:
    font = b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 9 9] /FontMatrix [1 0 0 1 0 0] /FirstChar 1 /LastChar 4 " + (
        b"/Widths [9 9 9 9] /CharProcs << >> /Encoding << /Differences [1 /a1x /a2x /a3x /a4x] >> >>"
    )
    page = b"/Resources << /Font << /F1 1000 0 R >> >>"
    outcome = read("a.pdf", pdf([b"BT /F1 12 Tf 72 720 Td <01020304010203040102> Tj ET"], {1000: font}, page=page))
    assert outcome.texts == []
    assert outcome.reasons in (["undecodable"], ["no-text"])


def test_only_so_many_pages_are_read(read: Read) -> None:
    outcome = read("a.pdf", pdf([lines(f"page {n}") for n in range(5)]), limits=Limits(pages=2))
    assert outcome.texts == ["page 0", "page 1"]
    assert [(r["reason"], json.loads(r["locator"])) for r in outcome.regions] == [("bomb", {"page": [3, 5]})]


@pytest.mark.parametrize("claim", [10**9, -1, 0])
def test_a_page_count_that_lies_ends(read: Read, claim: int) -> None:
    outcome = read("a.pdf", pdf([lines("one")], count=claim))
    assert outcome.texts == ["one"]


def test_a_page_tree_that_holds_itself_ends(read: Read) -> None:
    data = pdf([lines("one")], count=5).replace(b"/Kids [10 0 R]", b"/Kids [10 0 R 2 0 R]")
    assert read("a.pdf", data).texts[0] == "one"


def test_a_form_that_shows_itself_ends(read: Read) -> None:
    form = stream(lines("self") + b" /X0 Do", FORM % b"/X0 1000 0 R")
    assert "self" in read("a.pdf", pdf([b"/X0 Do"], {1000: form}, page=SHOW_X0)).texts[0]


def test_forms_that_multiply_cost_their_file_and_nothing_else() -> None:
    """Twelve forms, each showing the next twelve times: 10^13 lines of text in 4 kB."""
    forms = {
        1000 + n: stream(b"/X%d Do " % (n + 1) * 12, FORM % (b"/X%d %d 0 R" % (n + 1, n + 1001))) for n in range(12)
    }
    bomb = pdf([b"/X0 Do"], {**forms, 1012: stream(lines("ha"), FORM % b"")}, page=SHOW_X0)
    began = time.monotonic()
    with Sandbox(Limits(seconds=1)) as sandbox:
        parsed = parse_files(sandbox, [("bomb.pdf", bomb), ("good.pdf", pdf([lines("kept")]))], ParseOptions())
    assert parsed.regions["reason"].to_pylist() == ["timeout"]
    assert parsed.records["text"].to_pylist() == ["kept"]
    assert time.monotonic() - began < 30


def test_content_that_expands_without_end_is_stopped_by_memory_or_time() -> None:
    once = zlib.compress(b" " * (1 << 28), 9)
    bomb = pdf([stream(once, b"/Filter /FlateDecode")])
    nested = pdf([stream(zlib.compress(once, 9), b"/Filter [/FlateDecode /FlateDecode]")])
    with Sandbox(Limits(seconds=2, memory_mb=256)) as sandbox:
        contents = [("bomb.pdf", bomb), ("nested.pdf", nested), ("good.pdf", pdf([lines("kept")]))]
        parsed = parse_files(sandbox, contents, ParseOptions())
    assert parsed.records["text"].to_pylist() == ["kept"]
    assert set(parsed.regions["reason"].to_pylist()) <= {"memory", "crash", "timeout", "empty"}


def test_an_attachment_that_expands_too_far_is_refused_and_the_pages_are_kept(read: Read) -> None:
    more, catalog = attached(b"zeros.bin", deflated(b"\0" * (1 << 26)))
    outcome = read("a.pdf", pdf([lines("kept")], more, catalog))
    assert (outcome.texts, outcome.reasons) == (["kept"], ["bomb"])


def test_files_and_addresses_that_a_pdf_names_are_not_opened(read: Read, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of this machine")
    name = str(secret).encode()
    xfa = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file://%s">]><x>&e;</x>' % name
    more = {
        1000: b"<< /Type /Filespec /F (%s) >>" % name,
        1001: stream(xfa),
        1002: stream(b"", b"/F (%s)" % name),
    }
    catalog = (
        b"/OpenAction << /S /Launch /F (%s) >> /AcroForm << /XFA 1001 0 R /Fields [] >> "
        b"/AA << /WC << /S /JavaScript /JS (app.alert('x')) >> >> "
        b"/Names << /EmbeddedFiles << /Names [(s) 1000 0 R] >> >>"
    ) % name
    page = b"/Annots [<< /Type /Annot /Subtype /FileAttachment /Rect [0 0 9 9] /FS 1000 0 R >>]"
    outcome = read("a.pdf", pdf([lines("the page")], more, catalog, page))
    assert outcome.texts == ["the page"]
    assert not any("secret of" in repr(row) for row in [*outcome.records, *outcome.regions])


def test_deep_nesting_is_no_stack_overflow(read: Read) -> None:
    deep = {1000: b"[" * 100_000 + b"]" * 100_000, 1001: b"<< /A " * 100_000 + b"1" + b" >>" * 100_000}
    assert read("a.pdf", pdf([lines("kept")], deep, b"/Deep 1000 0 R /Deeper 1001 0 R")).texts == ["kept"]


def test_the_same_bytes_give_the_same_records(read: Read) -> None:
    data = pdf([lines("one", "two"), b"0 0 9 9 re f", lines("three")])
    first, second = read("a.pdf", data), read("a.pdf", data)
    assert first.records == second.records
    assert first.regions == second.regions


def test_sample_files_have_the_pages_that_their_list_says(read: Read, testdata: Path) -> None:
    folder = testdata / "py-pdf-sample-files"
    checked = 0
    for entry in json.loads((folder / "files.json").read_text())["data"]:
        path = folder / entry["path"]
        if not path.exists() or not entry.get("pages"):
            continue
        outcome = read(path.name, path.read_bytes())
        checked += 1
        if entry["encrypted"]:
            assert outcome.reasons == ["encrypted"], path.name
            continue
        own = [json.loads(r["locator"]) for r in [*outcome.records, *outcome.regions] if r["member"] == ""]
        assert sorted(p["page"] for p in own) == list(range(1, entry["pages"] + 1)), path.name
    assert checked > 8


def test_pages_of_other_projects_say_what_they_show(read: Read, testdata: Path) -> None:
    folder = testdata / "pdfjs" / "test" / "pdfs"
    shown = {
        "90ms_rksj_h_sample.pdf": "Hello ASCII\n日本語テスト",
        "issue5540.pdf": "ἄγγελος\nἀγελεία",
        "issue4304.pdf": "Words that should have spaces between them.",
        "helloworld-bad.pdf": "Hello, world!",
        "issue13107_reduced.pdf": "საქართველოს იუსტიციის სამინისტრო",
    }
    for name, text in shown.items():
        assert read(name, (folder / name).read_bytes()).texts == [text], name
