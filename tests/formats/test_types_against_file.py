"""Types against those that file(1) finds, on other projects' files: every disagreement is known, and judged."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from test_other_projects_files import parse_paths

EVERY = 4  # one file in so many
VAGUE = ("application/octet-stream", "text/plain", "inode/x-empty", "application/zip", "application/x-ole-storage")
OFFICE = "application/vnd.openxmlformats-officedocument."
# (file's type, ours): another name of the same.
SAME = {
    ("application/encrypted", "application/x-ole-encrypted"),
    ("application/x-rar", "application/vnd.rar"),
    ("application/x-ia-arc", "application/x-arc"),
    ("application/vnd.ms-outlook", "application/vnd.ms-outlook-pst"),
    ("audio/x-wav", "audio/wav"),
    ("audio/x-aiff", "audio/aiff"),
    ("image/svg+xml", "text/xml"),
    ("image/vnd.microsoft.icon", "image/x-icon"),
    ("application/vnd.oasis.opendocument.database", "application/vnd.oasis.opendocument.base"),
    ("application/vnd.ms-visio.drawing.main+xml", "application/vnd.ms-visio.drawing"),
}
# Ours says more: file stops at the container, at the family, or at text.
FINER = {
    ("application/vnd.ms-office", "application/vnd.corel"),
    ("application/vnd.ms-office", "application/vnd.ms-project"),
    ("application/vnd.ms-office", "application/vnd.visio"),
    ("application/vnd.ms-office", "application/vnd.stardivision.writer"),
    ("application/vnd.ms-office", "application/vnd.stardivision.calc"),
    ("application/vnd.ms-office", "application/vnd.stardivision.draw"),
    ("application/vnd.ms-excel", "application/vnd.ms-works"),
    ("application/msword", "application/x-ole-encrypted"),
    (f"{OFFICE}spreadsheetml.sheet", "application/vnd.ms-excel.sheet.binary.macroEnabled.12"),
    (f"{OFFICE}spreadsheetml.sheet", f"{OFFICE}spreadsheetml.template"),
    (f"{OFFICE}wordprocessingml.document", f"{OFFICE}wordprocessingml.template"),
    (f"{OFFICE}presentationml.presentation", f"{OFFICE}presentationml.slideshow"),
    ("message/news", "message/rfc822"),
    ("text/html", "message/rfc822"),
    ("text/html", "application/mbox"),
    ("text/xml", "text/html"),
    ("text/csv", "application/yaml"),
    ("text/x-makefile", "application/yaml"),
    ("application/x-ndjson", "application/json"),  # of one line
    ("text/html", "text/markdown"),
    ("text/x-c", "text/markdown"),
    ("text/x-java", "text/markdown"),
    ("text/x-script.python", "text/markdown"),
}
# file says more: text that we read as such, or what we refuse under the family's name.
COARSER = {
    ("text/calendar", "text/plain"),
    ("text/html", "text/plain"),  # an answer of HTTP, with its head
    ("text/x-gimp-gpl", "text/plain"),
    ("text/x-gimp-ggr", "text/plain"),
    ("image/x-xpixmap", "text/plain"),
    ("image/x-portable-bitmap", "text/plain"),  # numbers in ASCII
    ("image/x-portable-graymap", "text/plain"),
    ("image/x-portable-pixmap", "text/plain"),
    ("audio/x-m4a", "video/mp4"),
    ("image/avif", "video/mp4"),
    ("image/heic", "video/mp4"),
    ("video/webm", "video/x-matroska"),
}
# file is wrong: it goes by a few first bytes.
WRONG = {
    ("application/x-dosexec", "text/plain"),  # Serbian that begins with "MZ"
    ("application/x-adobe-aco", "text/plain"),  # UTF-32
    ("application/vnd.ms-excel", "application/x-ole-storage"),  # damaged: its directory cannot be read
    ("audio/x-hx-aac-adts", "audio/mpeg"),  # an ID3 tag before AAC; refused as corrupt
}


def test_every_disagreement_with_file_is_known(testdata: Path) -> None:
    program = shutil.which("file")
    if program is None:
        pytest.skip("file is not installed")
    paths = sorted(p for p in testdata.rglob("*") if p.is_file())[::EVERY]
    call = [program, "--brief", "--mime-type", "--files-from", "-"]
    theirs = subprocess.run(call, input="\n".join(map(str, paths)), capture_output=True, text=True, check=True)
    ours: list[str] = []
    for start in range(0, len(paths), 400):
        ours += parse_paths(paths[start : start + 400]).items["media"].to_pylist()
    pairs = list(zip(theirs.stdout.splitlines(), ours, paths, strict=True))
    known = SAME | FINER | COARSER | WRONG
    named = [pair for pair in pairs if pair[0] not in VAGUE and pair[1] != "application/octet-stream"]
    assert [pair for pair in named if pair[0] != pair[1] and pair[:2] not in known] == []
    assert len(named) > 200 and sum(theirs == own for theirs, own, _ in named) > 0.7 * len(named)
