"""An origin leads back to its text."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile

import pytest
from conftest import parse_files

from sheaf.formats.reread import reread
from sheaf.formats.sandbox import ParseOptions, Sandbox


def test_every_record_of_an_item_is_found_again_by_its_origin(sandbox: Sandbox) -> None:
    lines = b"".join(b'{"id":%d,"text":"record %d \xc3\xa9"}\n' % (i // 2, i) for i in range(4))  # keys come twice
    data = gzip.compress(lines)
    for options in (ParseOptions(), ParseOptions(key=("id",))):
        rows = parse_files(sandbox, [("a.jsonl.gz", data)], options).records.to_pylist()
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            for row in rows:
                locator = json.loads(row["locator"])
                found = reread(file, "a.jsonl.gz", row["member"], locator, options, sandbox)
                assert found == row["text"]
            assert reread(file, "a.jsonl.gz", "a.jsonl", {"bytes": [1, 2]}, options, sandbox) is None


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_with_awkward_names_are_found_again(sandbox: Sandbox) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.txt", "inside")
    names = ["x.zip", "x.zip!/a.txt", "x.zip%21/a.txt", "x.zip%2521/a.txt", "100%.txt", "a", "a", "a#2", "a#2#2"]
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name), inner.getvalue() if name == "x.zip" else f"text {number}")
    data = outer.getvalue()
    rows = parse_files(sandbox, [("a.zip", data)], ParseOptions()).records.to_pylist()
    paths = [row["member"] for row in rows]
    assert len(rows) == len(names) and len(set(paths)) == len(paths)
    assert "100%.txt" in paths and "x.zip!/a.txt" in paths and "x.zip%21/a.txt" in paths
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        for row in rows:
            locator = json.loads(row["locator"])
            assert reread(file, "a.zip", row["member"], locator, ParseOptions(), sandbox) == row["text"]
