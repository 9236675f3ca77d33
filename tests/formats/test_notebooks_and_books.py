"""Notebooks give what their author wrote, cell after cell; e-books give their chapters in the order of reading."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from sheaf.recipe import Limits

Read = Callable[..., Any]
DRM = '<encryption><EncryptedData><EncryptionMethod Algorithm="%s"/></EncryptedData></encryption>'


def cell(kind: str, source: Any, **more: Any) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": source, **more}


def notebook(*cells: Any, language: str = "python") -> bytes:
    metadata = {"kernelspec": {"language": language}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1).encode()


def book(chapters: dict[str, str], more: dict[str, bytes] | None = None, spine: list[str] | None = None) -> bytes:
    """chapters: file name to the body's XHTML. more: further files, with pictures listed in the manifest."""
    out = io.BytesIO()
    files = more or {}
    kinds = {**dict.fromkeys(chapters, "application/xhtml+xml"), **{n: "image/png" for n in files if n.endswith("png")}}
    items = "".join(f'<item id="{n}" href="text/{n}" media-type="{kind}"/>' for n, kind in kinds.items())
    refs = "".join(f'<itemref idref="{name}"/>' for name in (spine or chapters))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", '<container><rootfile full-path="OPS/book.opf"/></container>')
        archive.writestr(
            "OPS/book.opf",
            '<package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>On Rye</dc:title>'
            f"<dc:creator>A. Farmer</dc:creator><dc:language>en</dc:language></metadata><manifest>{items}</manifest>"
            f"<spine>{refs}</spine></package>",
        )
        for name, body in chapters.items():
            page = f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>{name}</title></head><body>{body}</body></html>'
            archive.writestr(f"OPS/text/{name}", page)
        for name, data in files.items():
            archive.writestr(name if "/" in name else f"OPS/text/{name}", data)
    return out.getvalue()


def test_prose_and_code_of_a_notebook_are_one_record(read: Read) -> None:
    output = [{"output_type": "stream", "text": ["printed"]}]
    data = notebook(
        cell("markdown", ["# Sums\n", "We add."]), cell("code", "1 + 1\n", outputs=output), cell("raw", "as it is")
    )
    outcome = read("a.ipynb", data)
    assert outcome.texts == ["# Sums\nWe add.\n\n```python\n1 + 1\n```\n\nas it is"]
    assert json.loads(outcome.records[0]["locator"]) == {"cells": [1, 3]}
    assert outcome.records[0]["bytes"] == len(data)


def test_a_notebook_is_known_by_its_content(read: Read) -> None:
    data = notebook(cell("markdown", "words"))
    assert read("a.json", data).texts == ["words"]
    assert read("a.ipynb", b'{"cells": "no notebook"}').texts != [""]
    large = notebook(cell("markdown", "words"), cell("code", "x = 1", outputs=[{"data": "y" * 200_000}]))
    assert read("a.ipynb", large).texts == ["words\n\n```python\nx = 1\n```"]


def test_notebooks_of_the_third_format_are_read(read: Read) -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Title"]},
        {"cell_type": "code", "input": ["print 1"], "language": "python", "outputs": []},
    ]
    data = json.dumps({"nbformat": 3, "metadata": {}, "worksheets": [{"cells": cells}]}).encode()
    assert read("a.ipynb", data).texts == ["## Title\n\n```python\nprint 1\n```"]


def test_a_fence_is_longer_than_those_inside_it(read: Read) -> None:
    assert read("a.ipynb", notebook(cell("code", 's = "```"'))).texts == ['````python\ns = "```"\n````']


def test_a_cell_that_is_none_costs_itself(read: Read) -> None:
    data = notebook(cell("markdown", "one"), "no cell", cell("code", [1, 2]), {"cell_type": "code"}, cell("code", "x"))
    outcome = read("a.ipynb", data)
    assert outcome.texts == ["one\n\n```python\nx\n```"]
    assert [(r["reason"], json.loads(r["locator"])) for r in outcome.regions] == [
        ("corrupt", {"cells": [n, n]}) for n in (2, 3, 4)
    ]


def test_a_notebook_that_breaks_off_keeps_its_cells(read: Read) -> None:
    data = notebook(cell("markdown", "grün"), cell("code", "x = 1"), cell("markdown", "lost"))
    outcome = read("a.ipynb", data[: data.index(b"lost")])
    assert outcome.texts == ["grün\n\n```\nx = 1\n```"]
    assert outcome.reasons == ["truncated"]
    start, end = json.loads(outcome.regions[0]["locator"])["bytes"]
    assert data[:start].rstrip().endswith(b"}")
    assert end == outcome.size
    bad = read("a.ipynb", data.replace(b'"x = 1"', b'"x = 1" oops'))
    assert (bad.texts, bad.reasons) == (["grün"], ["bad-json"])
    assert read("a.ipynb", b'{"cells": [').reasons == ["truncated"]


def test_a_long_notebook_becomes_records_of_whole_cells(read: Read) -> None:
    data = notebook(*[cell("markdown", f"cell {n} " + "words " * 10_000) for n in range(1, 21)])
    outcome = read("a.ipynb", data, limits=Limits(record_mb=1))
    spans = [json.loads(r["locator"])["cells"] for r in outcome.records]
    assert len(spans) > 1
    assert [n for first, last in spans for n in range(first, last + 1)] == list(range(1, 21))
    assert sum(r["bytes"] for r in outcome.records) == len(data)


def test_a_notebook_without_words_is_empty(read: Read) -> None:
    assert read("a.ipynb", notebook(cell("code", ""), cell("markdown", []))).reasons == ["empty"]


def test_chapters_are_read_in_the_order_of_the_spine(read: Read) -> None:
    data = book({"b.xhtml": "<h1>First</h1><p>Some words.</p>", "a.xhtml": "<p>More words.</p>"})
    outcome = read("a.epub", data)
    assert outcome.item["media"] == "application/epub+zip"
    assert outcome.texts == ["First\n\nSome words.", "More words."]
    assert [json.loads(r["locator"]) for r in outcome.records] == [{"chapter": 1}, {"chapter": 2}]
    meta = json.loads(outcome.records[0]["meta"])
    assert meta == {"title": "On Rye", "author": "A. Farmer", "language": "en", "chapter": "b.xhtml"}


def test_navigation_words_of_a_book_are_kept_and_a_cover_without_words_is_structure(read: Read) -> None:
    data = book({"cover.xhtml": '<img src="c.png"/>', "a.xhtml": "<nav>Part one</nav><p>x</p>"})
    outcome = read("a.epub", data)
    assert outcome.texts == ["Part one\n\nx"]
    assert json.loads(outcome.records[0]["locator"]) == {"chapter": 2}
    assert outcome.reasons == []
    assert read("a.epub", book({"cover.xhtml": '<img src="c.png"/>'})).reasons == ["no-text"]


def test_pictures_of_a_book_are_members(read: Read) -> None:
    data = book({"a.xhtml": "<p>x</p>"}, {"fig.png": b"\x89PNG\r\n\x1a\n broken"})
    outcome = read("a.epub", data)
    assert outcome.texts == ["x"]
    assert [r["member"] for r in outcome.regions] == ["OPS/text/fig.png"]


@pytest.mark.parametrize("lock", ["http://www.w3.org/2001/04/xmlenc#aes128-cbc", "urn:unknown"])
def test_a_book_under_drm_is_encrypted_and_one_with_scrambled_fonts_is_not(read: Read, lock: str) -> None:
    chapters = {"a.xhtml": "<p>words</p>"}
    assert read("a.epub", book(chapters, {"META-INF/encryption.xml": (DRM % lock).encode()})).reasons == ["encrypted"]
    font = (DRM % "http://www.idpf.org/2008/embedding").encode()
    assert read("a.epub", book(chapters, {"META-INF/encryption.xml": font})).texts == ["words"]


def test_a_missing_or_damaged_chapter_costs_itself(read: Read) -> None:
    chapters = {name: f"<p>{name} {'words ' * 300}</p>" for name in ("a.xhtml", "b.xhtml", "c.xhtml")}
    data = bytearray(book(chapters))
    at = data.index(b"OPS/text/b.xhtml") + len("OPS/text/b.xhtml") + 20
    data[at : at + 8] = b"\xff" * 8
    outcome = read("a.epub", bytes(data))
    assert [text.partition(" ")[0] for text in outcome.texts if "b.x" not in text] == ["a.xhtml", "c.xhtml"]
    assert ("corrupt", {"chapter": 2}) in [(r["reason"], json.loads(r["locator"])) for r in outcome.regions]
    gone = bytes(data).replace(b"OPS/text/c.xhtml", b"OPS/text/d.xhtml")
    found = read("a.epub", gone).regions
    assert {"chapter": 3} in [json.loads(r["locator"]) for r in found]


def test_a_book_that_names_files_outside_or_bombs_gets_neither(read: Read) -> None:
    chapters = {"a.xhtml": "<p>words</p>"}
    escape = book({**chapters, "../../../../etc/passwd": "<p>x</p>"})
    assert "root:" not in repr(read("a.epub", escape).records)
    opf = (
        b'<!DOCTYPE p [<!ENTITY e SYSTEM "file:///etc/passwd"><!ENTITY a "aaaaaaaaaa">'
        b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><package><metadata><title>&e;&b;t</title></metadata>'
        b'<manifest><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest>'
        b'<spine><itemref idref="a"/></spine></package>'
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("book.opf", opf)
        archive.writestr("a.xhtml", "<html><body><p>words</p></body></html>")
    outcome = read("a.epub", out.getvalue())
    assert outcome.texts == ["words"]
    assert json.loads(outcome.records[0]["meta"]) == {"title": "t"}
    bomb = book({"a.xhtml": "<p>" + "a" * (64 << 20) + "</p>"})
    assert set(read("a.epub", bomb, limits=Limits(record_mb=1)).reasons) <= {"bomb", "record-too-large"}


def test_only_so_many_chapters_are_read(read: Read) -> None:
    outcome = read("a.epub", book({f"{n}.xhtml": f"<p>chapter {n}</p>" for n in range(5)}), limits=Limits(pages=2))
    assert outcome.texts == ["chapter 0", "chapter 1"]
    assert [(r["reason"], json.loads(r["locator"])) for r in outcome.regions] == [("bomb", {"chapter": [3, 5]})]
