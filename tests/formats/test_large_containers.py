"""The parser's process keeps its memory on containers of gigabytes, also where they lie in each other."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

GIGABYTE = 1_000_000_000
PROGRAM = """
import resource, sys
from dataclasses import replace
from sheaf.formats.child import _preload
from sheaf.formats.item import read_item
from sheaf.formats.piece import ParseOptions, ParserLimits
from sheaf.recipe import Limits
class Count:
    records = characters = 0
    def record(self, id, kind, text, *rest):
        self.records += 1
        self.characters += len(text)
    def batch(self, ids, texts, *rest):
        self.records += len(texts)
        self.characters += sum(map(len, texts))
_preload()
sink = Count()
limits = ParserLimits(**Limits().model_dump())
with open(sys.argv[1], "rb") as file:
    size = file.seek(0, 2)
    result = read_item(file.fileno(), size, sys.argv[1], "", "", ParseOptions(), limits, sink)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, sink.records, sink.characters, len(result.regions))
"""


def write_lines(file: IO[bytes], size: int) -> None:
    """JSON lines of 1 KB, 1 MB of them again and again: further apart than any compressor here looks back."""
    rng = random.Random(1)
    texts = (" ".join(f"word{rng.randrange(50_000)}" for _ in range(100)) for _ in range(1000))
    block = "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()
    for _ in range(size // len(block)):
        file.write(block)


def zip_in_tar(path: Path, size: int) -> None:
    """The zip is too large to be held: it is streamed by its local headers."""
    inner = path.with_suffix(".inner")
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("first.txt", "before it")
        with archive.open("large.jsonl", "w", force_zip64=True) as member:
            write_lines(member, size)
    with tarfile.open(path, "w") as outer:
        outer.add(inner, "in.zip")
    inner.unlink()


def records_in_warc_gz(path: Path, size: int) -> None:
    with path.open("wb") as file:
        made = 0
        while made < size:
            body = io.BytesIO()
            write_lines(body, 10_000_000)
            block = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n" + body.getvalue()
            head = f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:{made}>\r\n".encode()
            head += f"WARC-Target-URI: http://example.com/{made}\r\nContent-Length: {len(block)}\r\n\r\n".encode()
            file.write(gzip.compress(head + block + b"\r\n\r\n", 1))
            made += len(block)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("make", "gigabytes"), [(zip_in_tar, 5.0), (records_in_warc_gz, 3.0)])
def test_the_parser_stays_under_half_a_gigabyte(
    make: Callable[[Path, int], None], gigabytes: float, tmp_path: Path
) -> None:
    size = int(gigabytes * float(os.environ.get("SHEAF_LARGE", "1")) * GIGABYTE)
    path = tmp_path / "large"
    make(path, size)
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, check=True)
    finally:
        path.unlink()
    peak, records, characters, regions = map(int, done.stdout.split())
    assert characters > 0.9 * size and records > size // 2000 and regions == 0
    assert peak < GIGABYTE // 2, f"{peak / 1e6:.0f} MB"
