"""Memory stays under 1 GB a worker, its parser included, on items of gigabytes."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

GIGABYTE = 1_000_000_000
# Peaks of the task's process and of the largest process that it started, whenever they were: no less than their sum.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from sheaf import recipe_file
from sheaf.corpus.workspace import Workspace
from sheaf.formats.sandbox import kept_sandbox
from sheaf.prepare import gather, read
from sheaf.console import Silent
recipe = recipe_file.load(Path(sys.argv[1]))
workspace = Workspace(Path(recipe.workspace)); workspace.create()
listing = gather.list_sources(recipe, Silent())
task = read.task(workspace, recipe, recipe.sources[0], listing.items)
read.read_batch(**task.arguments)
kept_sandbox(recipe.prepare.limits).close()  # a process counts when it has ended
peaks = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"peaks": peaks, "shards": len(workspace.finished_shards())}))
"""


def lines(size: int, make: Callable[[int, str], bytes], length: int) -> Iterator[bytes]:
    """So many bytes of lines, no two alike, in blocks."""
    rng = random.Random(1)
    words = " ".join(f"word{rng.randrange(50_000)}" for _ in range(100_000))
    made = 0
    for first in itertools.count(0, 10_000):
        if made >= size:
            return
        block = b"".join(make(n, words[n % 500_000 : n % 500_000 + length]) for n in range(first, first + 10_000))
        made += len(block)
        yield block


def json_line(n: int, text: str) -> bytes:
    return orjson.dumps({"text": f"{n} {text}", "n": n}) + b"\n"


def csv_line(n: int, text: str) -> bytes:
    return f'{n},"{text}",2026-01-01,{n % 7}\n'.encode()


def jsonl(folder: Path, gigabytes: float) -> None:
    with (folder / "large.jsonl").open("wb") as file:
        file.writelines(lines(int(gigabytes * GIGABYTE), json_line, 900))


def zipped(folder: Path, gigabytes: float) -> None:
    with (
        zipfile.ZipFile(folder / "large.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("inside.jsonl", "w", force_zip64=True) as member,
    ):
        member.writelines(lines(int(gigabytes * GIGABYTE), json_line, 900))


def gzipped(folder: Path, gigabytes: float) -> None:
    with gzip.open(folder / "large.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"number,words,date,kind\n")
        file.writelines(lines(int(gigabytes * GIGABYTE), csv_line, 200))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("make", "gigabytes"), [(jsonl, 5.0), (zipped, 5.0), (gzipped, 3.0)])
def test_a_worker_stays_under_a_gigabyte(make: Callable[[Path, float], None], gigabytes: float, tmp_path: Path) -> None:
    gigabytes *= float(os.environ.get("SHEAF_LARGE", "1"))  # a smaller share, to try it
    (tmp_path / "files").mkdir()
    make(tmp_path / "files", gigabytes)
    (tmp_path / "sheaf.yaml").write_text(
        textwrap.dedent("""
            name: large
            sources: [{name: files, uri: ./files}]
            workspace: ./workspace
        """)
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "sheaf.yaml")], capture_output=True, check=True
        )
    finally:
        shutil.rmtree(tmp_path / "workspace", ignore_errors=True)
        shutil.rmtree(tmp_path / "files")
    found = orjson.loads(done.stdout)
    assert found["shards"] > 10 * gigabytes
    assert min(found["peaks"]) > 50_000_000, "one of the two processes was not measured"
    assert sum(found["peaks"]) < GIGABYTE, found
