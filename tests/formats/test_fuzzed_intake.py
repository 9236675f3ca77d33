"""Mangled files of every family through the real sandbox: what must hold holds for each. `scripts/fuzz_intake.py`."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import runpy
import wave
import zipfile
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from office_files import docx, opendocument, p, pptx, shape, zipped
from pdf_maker import lines, pdf
from PIL import Image

FUZZ = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "fuzz_intake.py"))
PROSE = "".join(f"Sentence {n} says something about a subject, naïve or not.\n" for n in range(60))
ROWS = [{"id": n, "question": f"What is {n}?", "answer": f"It is {n * n}."} for n in range(40)]
File = tuple[str, bytes]


def seeds() -> list[File]:
    """A good file of each family, built here."""
    table = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
    parquet, arrow, image, sound = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, row_group_size=10)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    Image.linear_gradient("L").save(image, "PNG")
    with wave.open(sound, "wb") as wav:
        wav.setparams((1, 2, 8000, 0, "NONE", ""))
        wav.writeframes(bytes(4000))
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "a@example.org", "b@example.org", "Grüße"
    mail.set_content(PROSE)
    mail.add_alternative(f"<p>{PROSE}</p>", subtype="html")
    mail.set_boundary("a-boundary-that-stays")
    cells = "\n".join(f'{row["id"]},"{row["question"]}",{row["answer"]}' for row in ROWS)
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell("markdown"), cell("code")]}
    subtitles = "\n\n".join(f"{n}\n00:00:{n:02},000 --> 00:00:{n:02},900\nLine {n}" for n in range(1, 30))
    return [
        ("a.txt", PROSE.encode()),
        ("a.utf16.txt", PROSE.encode("utf-16")),
        (
            "a.html",
            f"<html><head><title>T</title></head><body><article><p>{PROSE}</p></article></body></html>".encode(),
        ),
        ("a.xml", f'<?xml version="1.0"?><a><b>{PROSE}</b><c d="e">{PROSE}</c></a>'.encode()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)).encode()),
        ("a.csv", f"id,question,answer\n{cells}\n".encode()),
        ("a.yaml", "".join(f"- id: {n}\n  text: {PROSE[:50]!r}\n" for n in range(20)).encode()),
        ("a.toml", "".join(f'[[a]]\nid = {n}\ntext = "some text"\n' for n in range(20)).encode()),
        ("a.srt", subtitles.encode()),
        ("a.ipynb", json.dumps(notebook).encode()),
        ("a.eml", mail.as_bytes()),
        ("a.mbox", b"".join(b"From a@b Thu Jan  1 00:00:00 2026\n" + mail.as_bytes() + b"\n" for _ in range(3))),
        ("a.pdf", pdf([lines("a page", "of text"), lines("another")])),
        ("a.docx", docx(p("one") + p("two"))),
        ("a.pptx", pptx([shape("first"), shape("second")])),
        ("a.odt", opendocument("text", "<text:p>one</text:p><text:p>two</text:p>")),
        ("a.rtf", rb"{\rtf1\ansi{\fonttbl{\f0 Arial;}}\f0 one\par two\par \u228?three}"),
        ("a.zip", zipped({"x.txt": PROSE, "y.json": json.dumps(ROWS), "z.docx": docx(p("inner"))})),
        ("a.txt.bz2", bz2.compress(PROSE.encode())),
        ("a.txt.xz", lzma.compress(PROSE.encode())),
        ("a.txt.zst", zstandard.compress(PROSE.encode())),
        ("a.parquet", parquet.getvalue()),
        ("a.arrow", arrow.getvalue()),
        ("a.png", image.getvalue()),
        ("a.wav", sound.getvalue()),
        ("a.warc", warc(PROSE.encode()) * 3),
    ]


def cell(kind: str) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": ["one line\n", "another"], "outputs": []}


def warc(page: bytes) -> bytes:
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + page
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/\r\n"
    return head + b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (
        len(body),
        body,
    )


def wrong(files: list[File]) -> list[str]:
    return [f"{f.what}: {f.name}: {f.detail}" for f in FUZZ["check"](files).findings if f.wrong]


def test_the_good_files_are_all_read() -> None:
    outcomes: list[dict[str, Any]] = []
    report = FUZZ["check"](seeds(), 0, outcomes.append)
    assert report.findings == []
    assert [row["name"] for row in outcomes if row["regions"] or not row["records"]] == []


def test_what_must_hold_holds_for_200_mangled_files() -> None:
    good = seeds()
    assert wrong([FUZZ["mutation"](good, 3, n) for n in range(200)]) == []


@pytest.mark.soak
def test_what_must_hold_holds_for_thousands_of_mangled_files_of_other_projects(testdata: Path) -> None:
    good = [(path.name, path.read_bytes()) for path in FUZZ["gathered"]([testdata], 400_000)]
    for first in range(0, 6000, 300):
        assert wrong([FUZZ["mutation"](good, 11, n) for n in range(first, first + 300)]) == []


@pytest.mark.parametrize("change", [b"", b"bytes that were not there"], ids=["lost", "put in"])
def test_damage_halfway_through_a_zip_costs_one_member(read: Any, change: bytes) -> None:
    data = zipped({f"{n}.txt": f"{n} {PROSE}" for n in range(5)}, zipfile.ZIP_STORED)
    at = data.index(b"2 Sentence") + 100
    outcome = read("a.zip", data[:at] + change + data[at + (0 if change else 9) :])
    assert [text[0] for text in outcome.texts if len(text) > len(PROSE) - 20][:2] == ["0", "1"]
    assert {"3", "4"} < {text[0] for text in outcome.texts}
    assert outcome.reasons == ["corrupt"]


@pytest.mark.parametrize("lost", [1, 40, 4000])
def test_bytes_lost_behind_the_text_of_a_document_leave_its_text(read: Any, lost: int) -> None:
    """All its parts lie before the hole, where the directory's own place makes them seem to begin before the file."""
    padding = "".join(chr(32 + n * n % 91) for n in range(9000)).replace("<", " ").replace("&", " ")
    data = docx(p("still here"), {"zz.txt": padding})
    end = data.index(b"zz.txt") + 50
    outcome = read("a.docx", data[:end] + data[end + lost :])
    assert (outcome.texts, "parser-bug" in outcome.reasons) == (["still here"], False)
