"""An origin leads back to its text."""

from __future__ import annotations

import gzip
import json
import tempfile

from conftest import parse_files

from sheaf.formats.reread import reread
from sheaf.formats.sandbox import ParseOptions, Sandbox


def test_every_record_of_an_item_is_found_again_by_its_origin(sandbox: Sandbox) -> None:
    lines = b"".join(b'{"id":%d,"text":"record %d \xc3\xa9"}\n' % (i, i) for i in range(2))
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
