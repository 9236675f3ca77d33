"""What an office document's XML may not do, each guard by itself: outside of the sandbox, which would hide a gap."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from sheaf.formats import office_xml
from sheaf.formats.package import Package
from sheaf.formats.piece import Context, ParseOptions, ParserLimits
from sheaf.formats.stream import Budget
from sheaf.recipe import Limits

R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def test_no_entity_is_expanded(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of this machine")
    declared = f'<!DOCTYPE a [<!ENTITY in "boom"><!ENTITY out SYSTEM "file://{secret}">]>'
    root = office_xml.parse(f"{declared}<a>x&in;y&out;z</a>".encode())
    assert root is not None
    assert "boom" not in "".join(root.itertext()) and "machine" not in "".join(root.itertext())


def test_no_outside_dtd_is_opened(tmp_path: Path) -> None:
    dtd, control = tmp_path / "a.dtd", tmp_path / "control"
    for path in (dtd, control):
        path.write_text('<!ENTITY e "x">')
        os.utime(path, (1, path.stat().st_mtime))
    control.read_bytes()
    if control.stat().st_atime == 1:
        pytest.skip("this file system does not say when a file was read")
    assert office_xml.parse(f'<!DOCTYPE a SYSTEM "file://{dtd}"><a>words</a>'.encode()) is not None
    assert dtd.stat().st_atime == 1


def test_elements_inside_each_other_end() -> None:
    _, problem = office_xml.parse_checked(b"<a>" * 2000 + b"</a>" * 2000)
    assert problem is not None and "depth" in problem.detail


def test_what_a_document_calls_external_is_no_part_of_it() -> None:
    links = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="in" Type="{R}/header" Target="header.xml"/>'
        f'<Relationship Id="out" Type="{R}/footer" Target="footer.xml" TargetMode="External"/></Relationships>'
    )
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("word/_rels/document.xml.rels", links)
    limits = ParserLimits(**Limits().model_dump())
    context = Context("a.docx", "", "", ParseOptions(), limits, Budget(1 << 30, 200.0, 100))
    relations = office_xml.Relations(Package(held), "word/document.xml", context)
    assert relations.of_kind("header") == ["word/header.xml"] and relations.target("in") == "word/header.xml"
    assert relations.of_kind("footer") == [] and relations.target("out") == ""
