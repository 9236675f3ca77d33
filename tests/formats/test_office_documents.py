"""DOCX, PPTX, OpenDocument, RTF: the text as a reader sees it, its place, and what breaks or attacks a document."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office_files import R, W, docx, opendocument, p, pptx, relations, shape, table, zipped

from sheaf.recipe import Limits

Read = Callable[..., Any]
LEVELS = "".join(
    f'<w:lvl w:ilvl="{n}"><w:start w:val="1"/><w:numFmt w:val="{f}"/><w:lvlText w:val="{t}"/></w:lvl>'
    for n, (f, t) in enumerate([("decimal", "%1."), ("lowerLetter", "%2)"), ("bullet", "x")])
)
NUMBERING = (
    f'<w:numbering xmlns:w="{W}"><w:abstractNum w:abstractNumId="7">{LEVELS}</w:abstractNum>'
    '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num></w:numbering>'
)


def item(text: str, level: int) -> str:
    return p(text, f'<w:pPr><w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="1"/></w:numPr></w:pPr>')


def contents(data: bytes) -> dict[str, str | bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def test_a_word_document_is_one_record_of_its_paragraphs(read: Read) -> None:
    outcome = read("a.docx", docx(p("Title") + p("one") + p(" ") + table(("a", "b"), ("c", "d")) + p("two")))
    assert outcome.texts == ["Title\n\none\n\na\tb\nc\td\n\ntwo"]
    assert outcome.records[0]["locator"] == '{"paragraphs":[1,5]}'
    assert outcome.reasons == []


def test_lists_are_counted_as_word_counts_them(read: Read) -> None:
    body = item("one", 0) + item("deep", 1) + item("deeper", 1) + item("two", 0) + item("again", 1) + item("dot", 2)
    data = docx(body, {"word/numbering.xml": NUMBERING}, n=("numbering", "numbering.xml"))
    assert read("a.docx", data).texts == ["1. one\na) deep\nb) deeper\n2. two\na) again\n• dot"]


def test_footnotes_and_comments_stand_behind_the_text(read: Read) -> None:
    run = '<w:t>Said</w:t><w:footnoteReference w:id="2"/><w:t>, so</w:t><w:commentReference w:id="0"/>'
    body = f"<w:p><w:r>{run}</w:r></w:p>"
    notes = f'<w:footnotes xmlns:w="{W}"><w:footnote w:id="2">{p("by whom")}</w:footnote></w:footnotes>'
    comments = f'<w:comments xmlns:w="{W}"><w:comment w:id="0">{p("really?")}</w:comment></w:comments>'
    files = {"word/footnotes.xml": notes, "word/comments.xml": comments}
    data = docx(body, files, f=("footnotes", "footnotes.xml"), c=("comments", "comments.xml"))
    assert read("a.docx", data).texts == ["Said[1], so[2]\n\n[1] by whom\n\n[2] really?"]


def test_deleted_text_and_field_codes_are_left_out_and_boxes_come_once(read: Read) -> None:
    box = f"<w:txbxContent>{p('in the box')}</w:txbxContent>"
    body = (
        "<w:p><w:r><w:t>kept</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t> added</w:t></w:r></w:ins><w:r><w:instrText>HYPERLINK x</w:instrText></w:r>"
        '<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
        f"<mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback></mc:AlternateContent></w:p>"
    )
    assert read("a.docx", docx(body)).texts == ["kept added\n\nin the box"]


def test_headers_and_footers_are_in_meta(read: Read) -> None:
    header = f'<w:hdr xmlns:w="{W}">{p("Confidential")}</w:hdr>'
    outcome = read("a.docx", docx(p("text"), {"word/h.xml": header}, h=("header", "h.xml")))
    assert (outcome.texts, outcome.records[0]["meta"]) == (["text"], '{"header":"Confidential"}')


def test_a_text_larger_than_a_record_goes_on_in_another(read: Read) -> None:
    data = docx("".join(p(f"{n} " + "word " * 2000) for n in range(100)))
    outcome = read("a.docx", data, limits=Limits(record_mb=1, ratio=10_000.0))
    assert len(outcome.records) > 2
    assert [text.split()[0] for text in "\n\n".join(outcome.texts).split("\n\n")] == [str(n) for n in range(100)]
    places = [r["locator"] for r in outcome.records]
    assert places[0].startswith('{"paragraphs":[1,') and places[-1].endswith(",100]}")


def test_an_embedded_file_is_read_and_a_picture_is_not(read: Read) -> None:
    inner = docx(p("the inner text"))
    files: dict[str, str | bytes] = {"word/embeddings/inner.docx": inner, "word/media/image1.png": b"\x89PNG\r\n\x1a\n"}
    outcome = read("a.docx", docx(p("outer"), files))
    assert (outcome.texts, outcome.members) == (["outer", "the inner text"], ["", "word/embeddings/inner.docx"])
    assert outcome.reasons == []


def test_slides_come_in_the_order_of_the_show_with_their_notes(read: Read) -> None:
    slides = [shape("First", "line") + shape("7", placeholder="sldNum"), shape("Second")]
    notes = f'<p:notes xmlns:p="u" xmlns:a="v">{shape("say hello", placeholder="body")}</p:notes>'
    files = {
        "ppt/slides/_rels/slide2.xml.rels": relations({"r1": ("notesSlide", "../notesSlides/n1.xml")}),
        "ppt/notesSlides/n1.xml": notes,
    }
    outcome = read("a.pptx", pptx(slides, {**files}))
    assert outcome.texts == ["First\nline\n\nsay hello", "Second"]
    assert [r["locator"] for r in outcome.records] == ['{"slide":1}', '{"slide":2}']


def test_a_slide_that_is_missing_costs_itself(read: Read) -> None:
    data = zipped({n: d for n, d in contents(pptx([shape("a"), shape("b"), shape("c")])).items() if "slide2" not in n})
    outcome = read("a.pptx", data)
    assert outcome.texts == ["a", "c"]
    assert [(r["reason"], r["locator"]) for r in outcome.regions] == [("corrupt", '{"slide":2}')]


def test_too_many_slides_are_refused_and_the_first_are_kept(read: Read) -> None:
    outcome = read("a.pptx", pptx([shape(str(n)) for n in range(6)]), limits=Limits(pages=4))
    assert (outcome.texts, outcome.reasons) == (["0", "1", "2", "3"], ["bomb"])


def test_an_opendocument_text_is_set_out_like_a_word_one(read: Read) -> None:
    styles = (
        '<text:list-style style:name="L"><text:list-level-style-number text:level="1" style:num-format="1" '
        'style:num-suffix="."/><text:list-level-style-bullet text:level="2"/></text:list-style>'
    )
    body = (
        "<text:tracked-changes><text:p>gone</text:p></text:tracked-changes><text:h>Title</text:h>"
        '<text:p>a<text:s text:c="2"/>b<text:tab/>c<text:note><text:note-citation>1</text:note-citation>'
        "<text:note-body><text:p>a note</text:p></text:note-body></text:note></text:p>"
        '<text:list text:style-name="L"><text:list-item><text:p>one</text:p><text:list><text:list-item><text:p>dot'
        "</text:p></text:list-item></text:list></text:list-item><text:list-item><text:p>two</text:p></text:list-item>"
        "</text:list><table:table><table:table-row><table:table-cell><text:p>x</text:p></table:table-cell>"
        "<table:table-cell><text:p>y</text:p></table:table-cell></table:table-row></table:table>"
    )
    outcome = read("a.odt", opendocument("text", body, styles=styles))
    assert outcome.texts == ["Title\n\na  b\tc[1]\n\n1. one\n• dot\n2. two\nx\ty\n\n[1] a note"]


def test_an_opendocument_presentation_gives_slides(read: Read) -> None:
    page = "<draw:page><draw:frame><draw:text-box><text:p>{}</text:p></draw:text-box></draw:frame></draw:page>"
    outcome = read("a.odp", opendocument("presentation", page.format("one") + page.format("") + page.format("three")))
    assert outcome.texts == ["one", "three"]
    assert [r["locator"] for r in outcome.records] == ['{"slide":1}', '{"slide":3}']


RTF: list[tuple[bytes, str]] = [
    (rb"{\rtf1\ansi one\par two\line three}", "one\n\ntwo\nthree"),
    (rb"{\rtf1\ansi\ansicpg1251 \'cf\'f0\'e8\'e2\'e5\'f2}", "Привет"),
    (rb"{\rtf1\ansi{\fonttbl{\f0\fcharset0 A;}{\f1\fcharset128 B;}}\f1 \'82\'b1\'83A\f0 !}", "こア!"),
    (rb"{\rtf1\uc2\u8364\'3f\'3f5 \uc0\u-10179\u-8704}", "€5 😀"),
    (rb"{\rtf1 a{\*\unknown hidden}b{\field{\*\fldinst HYPERLINK x}{\fldrslt link}}}", "ablink"),
    (rb"{\rtf1 \trowd\intbl a\cell b\cell\row\intbl c\cell d\cell\row\pard after}", "a\tb\nc\td\n\nafter"),
    (rb"{\rtf1 text{\footnote \chftn a note} more}", "text[1] more\n\n[1] a note"),
    (rb"{\rtf1 {\listtext 1.\tab}one\par{\listtext\'b7\tab}two\par}", "1. one\n• two"),
    (rb"{\rtf1 a{\pict\bin5 }}}}}}b}", "ab"),
    (rb"{\rtf1 kept {\deleted gone}too}", "kept too"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "text"), RTF)
def test_rtf_reads_as_word_shows_it(read: Read, data: bytes, text: str) -> None:
    outcome = read("a.rtf", data)
    assert (outcome.texts, outcome.reasons) == ([text], [])
    assert outcome.records[0]["locator"] == f'{{"bytes":[0,{len(data)}]}}'


def test_rtf_that_is_cut_off_keeps_what_came_before(read: Read) -> None:
    outcome = read("a.rtf", rb"{\rtf1 kept {\b this too")
    assert (outcome.texts, outcome.reasons) == (["kept this too"], ["truncated"])


def test_rtf_groups_inside_each_other_without_end_are_refused(read: Read) -> None:
    assert read("a.rtf", rb"{\rtf1 " + b"{" * 200_000).reasons == ["bomb"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_bytes_upset_the_rtf_reader(read: Read, noise: bytes) -> None:
    outcome = read("a.rtf", rb"{\rtf1 " + noise)
    assert "parser-bug" not in outcome.reasons


def test_a_document_without_its_directory_is_read_by_its_parts(read: Read) -> None:
    data = docx(p("still here"))
    cut = data[: data.rindex(b"PK\x01\x02") - 1]
    assert read("a.docx", cut).texts == ["still here"]


def test_xml_that_breaks_off_keeps_what_came_before(read: Read) -> None:
    parts = contents(docx(p("one") + p("two") + p("three")))
    document = parts["word/document.xml"]
    assert isinstance(document, bytes)
    parts["word/document.xml"] = document[: document.index(b"three")]
    outcome = read("a.docx", zipped(parts))
    assert (outcome.texts, outcome.reasons) == (["one\n\ntwo"], ["corrupt"])


def test_a_part_with_a_bad_checksum_is_kept_and_told(read: Read) -> None:
    data = bytearray(zipped(contents(docx(p("kept"))), zipfile.ZIP_STORED))
    at = data.index(b"kept")
    data[at] ^= 0x20
    outcome = read("a.docx", bytes(data))
    assert (outcome.texts, outcome.reasons) == (["Kept"], ["corrupt"])


ENTITIES = '<!DOCTYPE w [<!ENTITY a "boom"><!ENTITY b SYSTEM "file:///etc/passwd"><!ENTITY c "&a;&a;&a;">]>'


def test_entities_in_a_document_are_neither_expanded_nor_opened(read: Read) -> None:
    body = f'<w:document xmlns:w="{W}"><w:body>{p("x&a;y&b;z&c;")}{p("after")}</w:body></w:document>'
    parts = contents(docx(""))
    parts["word/document.xml"] = f'<?xml version="1.0"?>{ENTITIES}{body}'
    (text,) = read("a.docx", zipped(parts)).texts
    assert "boom" not in text and "root:" not in text and "after" in text


def test_a_bomb_inside_a_document_stops_it(read: Read) -> None:
    data = docx(p("a") + p("word " * 4_000_000))
    assert "bomb" in read("a.docx", data).reasons


def test_entries_that_overlap_are_a_bomb(read: Read) -> None:
    data = docx(p("x" * 3000))
    start = data.index(b"PK\x01\x02")
    # A second entry of the directory points to the same bytes.
    directory = bytearray(data[start:])
    second = directory.index(b"PK\x01\x02", 4)
    directory[second + 42 : second + 46] = bytes(4)
    assert read("a.docx", data[:start] + bytes(directory)).reasons == ["bomb"]


def test_what_a_document_links_to_is_not_opened(read: Read) -> None:
    links = (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="t" Type="{R}/attachedTemplate" Target="file:///etc/passwd" TargetMode="External"/>'
        f'<Relationship Id="s" Type="{R}/subDocument" Target="http://127.0.0.1:1/x" TargetMode="External"/>'
        f'<Relationship Id="h" Type="{R}/header" Target="../../../../etc/passwd"/></Relationships>'
    )
    data = docx(p("only this") + '<w:subDoc r:id="s"/>', {"word/_rels/document.xml.rels": links})
    outcome = read("a.docx", data)
    assert (outcome.texts, outcome.reasons) == (["only this"], [])


@pytest.mark.parametrize("depth", [100, 5000])
def test_tables_inside_each_other_end_somewhere(read: Read, depth: int) -> None:
    nested = "<w:tbl><w:tr><w:tc>" * depth + p("deep") + "</w:tc></w:tr></w:tbl>" * depth
    outcome = read("a.docx", docx(p("before") + nested + p("after")))
    assert "before" in outcome.texts[0]
    assert "deep" in outcome.texts[0] or outcome.reasons


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_no_damage_to_a_document_upsets_the_reader(read: Read, at: int, noise: bytes) -> None:
    data = bytearray(DAMAGED[at % len(DAMAGED)])
    at %= len(data)
    data[at : at + len(noise)] = noise
    outcome = read("a.docx", bytes(data))
    assert "parser-bug" not in outcome.reasons and (outcome.texts or outcome.reasons)


DAMAGED = [
    docx(
        p("one") + table(("a", "b")) + item("x", 0), {"word/numbering.xml": NUMBERING}, n=("numbering", "numbering.xml")
    ),
    pptx([shape("a"), shape("b")]),
    opendocument(
        "text", "<text:p>a</text:p><text:list><text:list-item><text:p>b</text:p></text:list-item></text:list>"
    ),
]
