"""Zips and OLE files: which document each is, wherever it lies and whatever comes first in it."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest
from office_files import compound, docx, ooxml, opendocument, p, pptx, shape, zipped

from sheaf.formats.detect import detect
from sheaf.formats.stream import from_bytes, from_file

Read = Callable[..., Any]
OOXML = "application/vnd.openxmlformats-officedocument"
EPUB = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": '<container><rootfiles><rootfile full-path="a.opf"/></rootfiles></container>',
}
KINDS: list[tuple[bytes, str]] = [
    (docx(p("a")), f"{OOXML}.wordprocessingml.document"),
    (pptx([shape("a")]), f"{OOXML}.presentationml.presentation"),
    (zipped(ooxml("xl/workbook.xml", f"{OOXML}.spreadsheetml.template", {"xl/workbook.xml": "<a/>"})),
     f"{OOXML}.spreadsheetml.template"),
    (zipped(ooxml("d.xml", "application/vnd.ms-word.document.macroEnabled", {"d.xml": "<a/>"})),
     "application/vnd.ms-word.document.macroEnabled.12"),
    (zipped({"word/document.xml": "<a/>", "[Content_Types].xml": "<Types/>"}), f"{OOXML}.wordprocessingml.document"),
    (opendocument("text", "<text:p>a</text:p>"), "application/vnd.oasis.opendocument.text"),
    (opendocument("spreadsheet", ""), "application/vnd.oasis.opendocument.spreadsheet"),
    (zipped(EPUB), "application/epub+zip"),
    (zipped({name: data for name, data in EPUB.items() if name != "mimetype"}), "application/epub+zip"),
    (zipped({"Index/Document.iwa": "", "a.jpg": ""}), "application/vnd.apple.iwork"),
    (zipped({"META-INF/MANIFEST.MF": "Manifest-Version: 1.0", "A.class": b"\xca\xfe\xba\xbe"}), "application/zip"),
    (zipped({"doc.kml": "<kml/>"}), "application/zip"),
    (compound({"WordDocument": b"x"}), "application/msword"),
    (compound({"WORKBOOK": b"x"}), "application/vnd.ms-excel"),
    (compound({"Current User": b"x", "PowerPoint Document": b"x"}), "application/vnd.ms-powerpoint"),
    (compound({"__properties_version1.0": b"x"}), "application/vnd.ms-outlook"),
    (compound({"EncryptedPackage": b"x", "EncryptionInfo": b"x"}), "application/x-ole-encrypted"),
    (compound({"VisioDocument": b"x"}), "application/vnd.visio"),
    (compound({"Mystery": b"x"}), "application/x-ole-storage"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "media"), KINDS, ids=[media for _, media in KINDS])
def test_a_document_is_known_by_what_lies_inside(data: bytes, media: str) -> None:
    assert detect(from_file(io.BytesIO(data)), "a.bin", "").media == media


@pytest.mark.parametrize(("data", "media"), KINDS, ids=[media for _, media in KINDS])
def test_it_is_known_inside_another_container_too(data: bytes, media: str) -> None:
    stream = from_bytes(data)
    assert detect(stream, "a.bin", "").media == media
    assert stream.read_all(1 << 20) == data  # looking took nothing away


def test_one_too_large_to_hold_is_told_by_its_beginning() -> None:
    data = docx(p("a"), {"word/media/image.bin": random.Random(1).randbytes(500_000)})
    stream = from_bytes(data)
    assert detect(stream, "a.bin", "", hold=1 << 12).media == f"{OOXML}.wordprocessingml.document"
    assert stream.file is None
    assert stream.read_all(1 << 24) == data


def test_a_password_is_asked_for_by_name(read: Read) -> None:
    encrypted = compound({"EncryptedPackage": bytes(5000), "EncryptionInfo": b"x"})
    assert read("report.docx", encrypted).reasons == ["encrypted"]
    manifest = "<manifest:manifest><manifest:encryption-data/></manifest:manifest>"
    document = opendocument("text", "<text:p>a</text:p>", {"META-INF/manifest.xml": manifest})
    assert read("report.odt", document).reasons == ["encrypted"]


def test_a_kind_that_is_not_read_is_named(read: Read) -> None:
    outcome = read("plan.vsd", compound({"VisioDocument": b"x"}))
    assert [(r["reason"], r["detail"]) for r in outcome.regions] == [("unsupported", "Visio drawing")]


def test_a_program_in_a_zip_is_an_archive_like_any_other(read: Read) -> None:
    outcome = read("tool.jar", zipped({"META-INF/MANIFEST.MF": "Manifest-Version: 1.0\n", "notes.txt": "read me"}))
    assert outcome.texts == ["Manifest-Version: 1.0", "read me"]


def test_an_embedded_object_is_opened(read: Read) -> None:
    name = b"\x02\0notes.txt\0C:\\notes.txt\0\0\0\x03\0\x04\0\0\0tmp\0"
    native = name + len(b"inside").to_bytes(4, "little") + b"inside"
    outcome = read("a.bin", compound({"\x01Ole10Native": len(native).to_bytes(4, "little") + native}))
    assert (outcome.texts, outcome.members) == (["inside"], ["notes.txt"])


def test_a_compound_file_whose_sectors_go_in_circles_is_refused(read: Read) -> None:
    data = bytearray(compound({"WordDocument": bytes(6000)}))
    for sector in range(12):
        data[-512 + 4 * sector : -508 + 4 * sector] = (0).to_bytes(4, "little")
    assert read("a.doc", bytes(data)).regions
