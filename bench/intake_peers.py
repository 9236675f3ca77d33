"""The reader against what others read with, on the same files in one run: datatrove's readers and unstructured.

The peers live in an environment of their own, made in a temporary folder (pip needs the package index); each runs in a
fresh process there, and says what it took after its imports. Both sides take turns, the best of TURNS counts.

- JSON Lines: datatrove's JsonlReader gives documents as Python objects. Ours also finds type and encoding, normalises,
  hashes item and records, keeps places, and hands over checked Arrow tables from a confined process.
- WARC of HTML pages: datatrove's WarcReader and its Trafilatura extractor (as its examples set it up); ours likewise
  from the archive to the main text.
- Office and HTML: unstructured's `partition`. Its models for sentences and parts of speech would be fetched from the
  network; two trivial functions stand in for them, so it does less work here than it does in life.

The bar is 5 in each. Run:
    python bench/intake_peers.py [scale, default 1] [Python of an environment with the peers, instead of making one]
"""

from __future__ import annotations

import gzip
import os
import platform
import random
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import orjson

from documents import html_page
from intake import Seconds, json_line, timed
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits

TURNS = 2
PACKAGES = (
    *("datatrove[io]==0.6.0", "orjson", "warcio", "trafilatura", "lxml_html_clean", "faust-cchardet", "python-magic"),
    "unstructured[docx,pptx,xlsx]==0.18.15",
)
JSON_LINES = """
from datatrove.pipeline.readers import JsonlReader
reader = JsonlReader(folder)
def run():
    return sum(len(d.text) > 0 for d in reader.run(None, 0, 1))
"""
WARC = """
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.readers import WarcReader
reader, extractor = WarcReader(folder, glob_pattern="*.warc.gz"), Trafilatura(favour_precision=True)
def run():
    return sum(1 for _ in extractor.run(reader.run(None, 0, 1), 0, 1))
"""
OFFICE = """
import os
os.environ["AUTO_DOWNLOAD_NLTK"] = "false"
import nltk
nltk.sent_tokenize = lambda text: text.split(". ")
nltk.word_tokenize = str.split
nltk.pos_tag = lambda words: [(word, "VB") for word in words]
from unstructured.partition.auto import partition
from unstructured.partition import docx, html, pptx, xlsx
paths = sorted(entry.path for entry in os.scandir(folder))
def run():
    return sum(1 for path in paths if "\\n".join(element.text for element in partition(path)))
"""
RUN = """
import json, logging, resource, sys, time
logging.disable(logging.CRITICAL)
folder = sys.argv[1]
%s
def used():
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)
cpu, wall = used(), time.perf_counter()
documents = run()
if "extractor" in globals() and hasattr(extractor, "close"):
    extractor.close()
print(json.dumps([used() - cpu, time.perf_counter() - wall, documents]))
"""
MAKE_OFFICE = """
import random, sys
import docx, openpyxl, pptx
folder, number = sys.argv[1], int(sys.argv[2])
dice = random.Random(7)
words = "the of a grain field water spring early under market price year harvest wind soil river farmer winter".split()
def sentence():
    return " ".join(dice.choices(words, k=dice.randint(6, 20))).capitalize() + "."
for i in range(number):
    text = docx.Document()
    for n in range(dice.choice((10, 40, 120))):
        text.add_heading(sentence()) if n % 12 == 0 else text.add_paragraph(" ".join(sentence() for _ in range(3)))
    text.save(f"{folder}/{i:03d}.docx")
    slides = pptx.Presentation()
    for _ in range(dice.choice((5, 15, 30))):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = sentence(), "\\n".join(sentence() for _ in range(4))
    slides.save(f"{folder}/{i:03d}.pptx")
    book = openpyxl.Workbook()
    book.active.append(["id", "text", "price"])
    for row in range(dice.choice((20, 100, 400))):
        book.active.append([row, sentence(), dice.random()])
    book.save(f"{folder}/{i:03d}.xlsx")
"""


def environment(folder: Path) -> str:
    """The Python of a new environment that has the peers."""
    venv.create(folder / "peers", with_pip=True)
    python = str(folder / "peers/bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def write_warc(path: Path, pages: int) -> None:
    dice = random.Random(3)
    with path.open("wb") as file:
        for n in range(pages):
            body = html_page(dice).encode()
            block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{n:032x}>\r\n"
                f"WARC-Target-URI: http://example.com/{n}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
                "WARC-Identified-Payload-Type: text/html\r\nContent-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(block)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + block + b"\r\n\r\n", 6))


def theirs(python: str, program: str, folder: Path) -> tuple[Seconds, int]:
    out = subprocess.run(
        [python, "-c", RUN % program, str(folder)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ).stdout
    cpu, wall, documents = orjson.loads(out.splitlines()[-1])
    return (cpu, wall), documents


def ours(sandbox: Sandbox, paths: Sequence[Path]) -> tuple[Seconds, int]:
    records = 0

    def run() -> None:
        nonlocal records
        for first in range(0, len(paths), 200):
            with ExitStack() as stack:
                files = [(path, stack.enter_context(path.open("rb"))) for path in paths[first : first + 200]]
                items = [ItemInput(file, path.name, path.stat().st_size) for path, file in files]
                for part in sandbox.parse_in_parts(items, ParseOptions(), paths[0].parent.parent):
                    records += len(part.records) + sum(len(table) for long in part.long for table in long.records())

    return timed(run), records


def compare(label: str, python: str, program: str, folder: Path, sandbox: Sandbox) -> None:
    paths = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in paths) / 1e6
    turns = [(theirs(python, program, folder), ours(sandbox, paths)) for _ in range(TURNS)]
    them, us = (min(turn[side][0] for turn in turns) for side in (0, 1))
    print(
        f"{label:<16} {len(paths):>4} files, {size:>6.1f} MB: theirs {them[0]:>6.2f} s for {turns[0][0][1]} documents, "
        f"ours {us[0]:>6.2f} s for {turns[0][1][1]} records; theirs/ours {them[0] / us[0]:>5.1f} of processor time, "
        f"{them[1] / us[1]:>5.1f} of wall clock",
        flush=True,
    )


def main() -> None:
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory() as name, Sandbox(Limits()) as sandbox:
        root = Path(name)
        python = sys.argv[2] if len(sys.argv) > 2 else environment(root)
        versions = subprocess.run([python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
        known = ("datatrove", "unstructured=", "trafilatura", "warcio", "orjson")
        print(f"Python {platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
              f"load {os.getloadavg()[0]:.1f};", *(v for v in versions.split() if v.startswith(known)))  # fmt: skip
        sandbox.level()
        lines, pages, office = root / "lines", root / "pages", root / "office"
        for folder in (lines, pages, office):
            folder.mkdir()
        for n in range(4):
            rows = range(n, n + int(20_000 * scale))
            (lines / f"{n}.jsonl").write_bytes(b"".join(json_line(row) for row in rows))
        compare("JSON Lines", python, JSON_LINES, lines, sandbox)
        write_warc(pages / "pages.warc.gz", int(2000 * scale))
        compare("WARC with HTML", python, WARC, pages, sandbox)
        subprocess.run([python, "-c", MAKE_OFFICE, str(office), str(int(40 * scale))], check=True)
        dice = random.Random(5)
        for n in range(int(120 * scale)):
            (office / f"{n:03d}.html").write_text(html_page(dice), encoding="utf-8")
        compare("Office and HTML", python, OFFICE, office, sandbox)


if __name__ == "__main__":
    main()
