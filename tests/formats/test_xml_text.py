"""XML becomes the text between its tags; what it declares is never expanded, and what it names is never opened."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sheaf.recipe import Limits

Read = Callable[..., Any]
BOOK = """<?xml version="1.0"?>
<book xmlns="http://docbook.org/ns/docbook">
  <title>On Wheat</title>
  <chapter>
    <title>Sowing</title>
    <para>Sow <emphasis>early</emphasis>, and
      not too <code>deep</code>.</para>
    <programlisting>for seed in bag:
    sow(seed)</programlisting>
  </chapter>
</book>
"""


def places(outcome: Any) -> list[tuple[int, int]]:
    return [tuple(json.loads(r["locator"])["bytes"]) for r in outcome.records]


def metas(outcome: Any) -> list[dict[str, Any]]:
    return [json.loads(r["meta"]) for r in outcome.records]


def test_sentences_stay_together_blocks_stand_alone_and_code_keeps_its_indentation(read: Read) -> None:
    outcome = read("a.xml", BOOK.encode())
    text = "On Wheat\nSowing\nSow early, and\nnot too deep.\nfor seed in bag:\n    sow(seed)"
    assert outcome.texts == [text]
    assert places(outcome) == [(0, len(BOOK))]
    assert metas(outcome) == [{"root": "book", "namespace": "http://docbook.org/ns/docbook", "title": "On Wheat"}]


def test_a_list_inside_a_paragraph_stands_on_its_own_lines(read: Read) -> None:
    data = b"<?xml version='1.0'?><a>Some <b>of</b> it: <ul><li>one</li><li>two</li></ul> and <i>so</i> on.</a>"
    assert read("a.xml", data).texts == ["Some of it:\none\ntwo\nand so on."]


def test_a_feed_gives_a_record_an_entry_at_its_bytes(read: Read) -> None:
    items = "".join(
        f"<item><title>News {n}</title><link>http://x.example/{n}</link>"
        f"<description>&lt;p&gt;It is &lt;b&gt;day&lt;/b&gt; {n}.&lt;/p&gt;</description></item>\n"
        for n in range(3)
    )
    data = f'<?xml version="1.0"?><rss version="2.0"><channel><title>All</title>\n{items}</channel></rss>'.encode()
    outcome = read("a.rss", data)
    assert outcome.texts == [f"News {n}\nIt is day {n}." for n in range(3)]
    for n, (start, end) in enumerate(places(outcome)):
        assert data[start:end].strip().startswith(b"<item><title>News %d" % n)
        assert data[start:end].strip().endswith(b"</item>")
    assert metas(outcome)[1] == {"root": "rss", "title": "News 1", "collection": "All"}


def test_a_wiki_dump_gives_a_record_a_page_with_its_lines(read: Read) -> None:
    page = (
        "<page><title>Rye</title><ns>0</ns><id>7</id><revision><id>9</id><timestamp>2024</timestamp>"
        '<text xml:space="preserve">== Rye ==\n* a grain\n*  of the cold</text><sha1>abc</sha1></revision></page>'
    )
    outcome = read("a.xml", f"<mediawiki><siteinfo><sitename>W</sitename></siteinfo>{page}{page}</mediawiki>".encode())
    assert outcome.texts == ["Rye\n== Rye ==\n* a grain\n*  of the cold"] * 2


def test_rows_in_attributes_are_rows_for_the_recipe(read: Read) -> None:
    data = b'<posts><row Id="1" Title="Why" Body="Because."/><row Id="2" Title="How" Body="So."/></posts>'
    assert read("a.xml", b"<?xml version='1.0'?>" + data).texts[0] == "Id: 1\nTitle: Why\nBody: Because."
    outcome = read("a.xml", b"<?xml version='1.0'?>" + data, text="{Title}\n{Body}")
    assert outcome.texts == ["Why\nBecause.", "How\nSo."]
    feed = b"<rss><channel><item><title>T</title><link>u</link></item></channel></rss>"
    assert read("a.rss", feed, text="{title} at {link}").texts == ["T at u"]


def test_rows_of_a_table_in_a_document_stay_in_it(read: Read) -> None:
    table = (
        "<article><para>Before.</para><table><row><entry>a</entry></row><row><entry>b</entry></row></table></article>"
    )
    assert read("a.xml", b"<?xml version='1.0'?>" + table.encode()).texts == ["Before.\na\nb"]


def test_what_is_longer_than_a_record_is_cut_where_its_elements_repeat(read: Read) -> None:
    chapters = [f"<chapter><para>Chapter {n}. {'words ' * 20_000}</para></chapter>" for n in range(30)]
    data = f"<?xml version='1.0'?><book><info>x</info><body>{''.join(chapters)}</body></book>".encode()
    assert len(data) > 3 << 20
    outcome = read("a.xml", data, limits=Limits(record_mb=1))
    assert [text[:11].strip() for text in outcome.texts] == [f"Chapter {n}." for n in range(30)]
    assert outcome.reasons == []
    assert "left out" in outcome.item["notes"]
    for n, (start, end) in enumerate(places(outcome)):
        assert data[start:end].startswith(b"<chapter><para>Chapter %d." % n)
        assert data[start:end].rstrip().endswith(b"</chapter>")


def test_one_element_that_is_too_long_is_refused_and_the_others_are_kept(read: Read) -> None:
    long = "<page><title>Long</title><text>" + "long words " * 300_000 + "</text></page>"
    short = "<page><title>Short</title><text>few words</text></page>"
    data = f"<mediawiki>{short}{long}{short}</mediawiki>".encode()
    outcome = read("a.xml", b"<?xml version='1.0'?>" + data, limits=Limits(record_mb=1))
    assert outcome.texts == ["Short\nfew words"] * 2
    assert outcome.reasons == ["record-too-large"]
    (region,) = outcome.regions
    assert abs(region["bytes"] - len(long)) < 10


def test_a_mistake_keeps_what_comes_before_and_says_where_it_is(read: Read) -> None:
    data = b"<?xml version='1.0'?>\n<a><p>good words</p>\n<p>half</a>\n<p>lost</p>"
    outcome = read("a.xml", data)
    assert outcome.texts == ["good words\nhalf"]
    (region,) = outcome.regions
    assert (region["reason"], region["detail"]) == ("corrupt", "line 3, column 10: mismatched tag")
    start, end = json.loads(region["locator"])["bytes"]
    assert data[start - 2 : start] == b"</"
    assert end == len(data)
    cut = read("a.xml", data[: data.index(b"half") + 4])
    assert (cut.texts, cut.reasons) == (["good words\nhalf"], ["truncated"])


def test_a_broken_feed_keeps_its_entries(read: Read) -> None:
    data = b"<rss><channel><item><title>one</title></item><item><title>two</title></item></chan></rss>"
    outcome = read("a.rss", data)
    assert (outcome.texts, outcome.reasons) == (["one", "two"], ["corrupt"])


@pytest.mark.parametrize("bad", [b"\xff", b"\xe2\x82", b"\x00", b"\x1b", b"\x0c"])
def test_a_bad_byte_costs_itself(read: Read, bad: bytes) -> None:
    data = (
        b"<?xml version='1.0' encoding='utf-8'?><a><p>one " + bad + b" two</p><p>gr\xc3\xbcn \xe2\x82\xac</p></a>" * 1
    )
    outcome = read("a.xml", data)
    assert outcome.texts == ["one " + "?" * len(bad) + " two\ngrün €"]
    assert outcome.reasons == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1251", "gb18030"])
def test_every_encoding_reads_the_same(read: Read, encoding: str) -> None:
    word = "привет" if encoding == "cp1251" else "привет 中文"
    label = encoding.removesuffix("-sig")
    body = f"<?xml version='1.0' encoding='{label}'?><rss><item><p>{word}</p></item><item><p>two</p></item></rss>"
    data = body.encode(encoding)
    outcome = read("a.xml", data)
    assert outcome.texts == [word, "two"]
    (first, second), (third, end) = places(outcome)
    assert data[third:end].strip(b"\0").endswith("</item>".encode(label.removesuffix("-be"))[-3:].strip(b"\0"))
    assert first < second == third < end <= len(data)


def test_html_s_names_are_characters_and_other_references_stay_as_written(read: Read) -> None:
    declared = b'<!DOCTYPE a [<!ENTITY who "Bob"><!ENTITY dash "&#8212;">]>'
    data = declared + b"<a>&who;&dash;x&nbsp;&eacute; &unknown; &amp; &#65;</a>"
    assert read("a.xml", data).texts == ["&who;—x é &unknown; & A".replace("x ", "x\xa0")]


def test_bombs_are_not_expanded(read: Read) -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]><a>&l11; kept</a>'
    assert read("a.xml", bomb.encode()).texts == ["&l11; kept"]
    inside = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]><a><p>kept</p><b c="&l11;"/></a>'
    outcome = read("a.xml", inside.encode(), limits=Limits(seconds=20, memory_mb=256))
    assert (outcome.texts, outcome.reasons) == (["kept"], ["corrupt"])
    assert "amplification" in outcome.regions[0]["detail"]
    quadratic = f'<!DOCTYPE a [<!ENTITY q "{"q" * 50_000}">]><a>{"&q;" * 20_000}</a>'
    assert len(read("a.xml", quadratic.encode()).texts[0]) == 60_000


def test_files_and_addresses_that_xml_names_are_not_opened(read: Read, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret of this machine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.dtd"
        attacks = [
            f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{secret}">]><a>words &e;</a>',
            f'<!DOCTYPE a SYSTEM "{url}"><a>words</a>',
            f'<!DOCTYPE a [<!ENTITY % p SYSTEM "{url}"> %p;]><a>words</a>',
            f'<!DOCTYPE a PUBLIC "-//X//Y" "{secret}"><a>words &e;</a>',
            f'<a xmlns:xi="http://www.w3.org/2001/XInclude">words <xi:include href="{secret}" parse="text"/></a>',
            f'<?xml-stylesheet type="text/xsl" href="{url}"?><a>words</a>',
        ]
        for attack in attacks:
            outcome = read("a.xml", b'<?xml version="1.0"?>' + attack.encode())
            assert outcome.texts[0].startswith("words"), attack
            assert "secret of" not in repr(outcome.records)
        with pytest.raises(TimeoutError):
            server.accept()


def test_depth_is_limited_and_what_lies_above_it_is_kept(read: Read) -> None:
    data = b"<?xml version='1.0'?><a><p>kept</p>" + b"<d>" * 100_000 + b"deep" + b"</d>" * 100_000 + b"</a>"
    outcome = read("a.xml", data)
    assert (outcome.texts, outcome.reasons) == (["kept"], ["bomb"])


def test_a_million_attributes_or_siblings_take_seconds(read: Read) -> None:
    began = time.monotonic()
    names = b" ".join(b'a%d="x"' % n for n in range(100_000))
    assert read("a.xml", b"<?xml version='1.0'?><a " + names + b"><p>kept</p></a>").texts == ["kept"]
    assert read("a.xml", b"<?xml version='1.0'?><a>" + b"<b>x</b>" * 300_000 + b"</a>").texts[0].count("x") == 300_000
    assert time.monotonic() - began < 20


def test_code_and_settings_written_in_xml_stay_as_they_are(read: Read) -> None:
    sheet = b'<x:stylesheet xmlns:x="http://www.w3.org/1999/XSL/Transform">\n  <x:template match="/"/>\n</x:stylesheet>'
    assert read("a.xsl", sheet).texts == [sheet.decode()]
    layout = b'<?xml version="1.0"?>\n<LinearLayout android:width="1">\n  <Button text="Go"/>\n</LinearLayout>'
    assert read("a.xml", layout).texts == [layout.decode()]
    assert read("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>').reasons == ["no-text"]
    labelled = b'<svg xmlns="http://www.w3.org/2000/svg"><style>p{}</style><text>A label</text></svg>'
    assert read("a.svg", labelled).texts == ["A label"]


def test_xhtml_is_read_as_html_whatever_its_prefix(read: Read) -> None:
    page = b'<?xml version="1.0"?><h:html xmlns:h="http://www.w3.org/1999/xhtml"><h:body><h:p>x</h:p></h:body></h:html>'
    assert read("a.xml", page).texts == ["x"]
    plain = (
        b'<?xml version="1.0"?><?pi?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>words here</p></body></html>'
    )
    assert read("a.xml", plain).texts == ["words here"]


def test_only_what_begins_like_xml_is_read_as_xml(read: Read) -> None:
    assert read("a.xml", b"no markup at all, only words").texts == ["no markup at all, only words"]
    assert read("a.xml", b"no markup").item["media"] == "text/plain"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.integers(0, 10_000))
def test_any_damage_leaves_every_byte_accounted_for(read: Read, noise: bytes, place: int) -> None:
    data = BOOK.encode()
    at = place % len(data)
    read("a.xml", data[:at] + noise + data[at + len(noise) // 2 :])  # the fixture checks the account


def test_bombs_and_outside_entities_of_other_projects_give_what_is_written(read: Read, testdata: Path) -> None:
    folder = testdata / "defusedxml" / "xmltestdata"
    shown = {"xmlbomb.xml": "&c;", "xmlbomb2.xml": "text&a;", "cyclic.xml": "&a;", "external.xml": "&ee;"}
    for path in sorted(folder.glob("*.x*")):
        outcome = read(path.name, path.read_bytes())
        assert outcome.reasons == [], path.name
        assert len(outcome.texts[0]) <= outcome.size
        assert outcome.texts[0] == shown.get(path.name, outcome.texts[0])
    xxe = read("a.xml", (testdata / "tika" / "test-documents" / "testXXE.xml").read_bytes())
    assert "couldnt_possibly_exist" in xxe.texts[0]  # as it is written


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "gb18030"])
def test_an_ampersand_that_begins_no_reference_is_one_and_costs_nothing(read: Read, encoding: str) -> None:
    body = (
        "<t a='R&D'>AT&T & Söhne &lt;1&gt; &nbsp;&unknown; &#65;&#x42; &#0; &#xD800; &#xB; &#1114112; a&;b &&amp;</t>"
    )
    data = f'<?xml version="1.0" encoding="{encoding}"?><d>{body}<p>after</p></d>'.encode(encoding)
    outcome = read("a.xml", data)
    said = "AT&T & Söhne <1> \xa0&unknown; AB &#0; &#xD800; &#xB; &#1114112; a&;b &&\nafter"
    assert (outcome.texts, outcome.reasons) == ([said], [])
    assert places(outcome)[0][1] == len(data)


def test_ampersands_in_attributes_and_in_character_data_are_kept(read: Read) -> None:
    data = b"<?xml version='1.0'?><posts><row Id='1' Body='R&D & co'/><row Id='2' Body='x'/></posts>"
    assert read("a.xml", data, text="Body").texts == ["R&D & co", "x"]
    assert read("a.xml", b"<?xml version='1.0'?><a><![CDATA[x & y &amp; z]]></a>").texts == ["x & y &amp; z"]


def test_a_reference_may_lie_across_blocks(read: Read) -> None:
    block = 1 << 20
    for shift in range(-12, 3):
        lead = "<?xml version='1.0'?><a><p>"
        text = "x" * (block - len(lead) + shift) + " AT&T &amp; R&#38;D &eacute;"
        outcome = read("a.xml", f"{lead}{text}</p></a>".encode())
        assert outcome.texts[0].endswith("x AT&T & R&D é") and outcome.reasons == []


@given(
    st.lists(st.sampled_from(["&", "&amp;", "&#38;", "a", ";", "#", "x", "&lt;", "é", "&#", "lt", " "]), max_size=12)
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_row_of_ampersands_loses_what_comes_after(read: Read, parts: list[str]) -> None:
    data = f"<?xml version='1.0'?><a><p>x{''.join(parts)}x</p><p>after</p></a>".encode()
    outcome = read("a.xml", data)
    assert outcome.reasons == [] and outcome.texts[0].endswith("after")
