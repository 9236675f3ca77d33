"""HTML and PDF through the whole reader (sandbox, detection, decoding, normalising, hashing, Arrow) against the library
that does the parsing, called bare in a loop over the same files: resiliparse, and PDFium through pypdfium2.

Prints files and MB a second for both, and the ratio, of wall-clock and of processor time; the bar is 0.8. The two take
turns, and the best of five turns counts. Pages and PDFs are made here from a fixed seed; a folder of your own can be
given instead: its *.html and *.pdf, at most 2,000 of each. Run:
    python bench/documents.py [folder]
"""

from __future__ import annotations

import contextlib
import platform
import random
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pypdfium2
from resiliparse.extract.html2text import extract_plain_text

from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits

TURNS = 5
WORDS = re.findall(
    r"\w+",
    "the of a grain field water spring early which under market price year harvest wind soil river farmer winter "
    "between measure several account number history letter village another country question answer morning",
)


def sentence(dice: random.Random) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(6, 24))).capitalize() + "."


def paragraph(dice: random.Random) -> str:
    return " ".join(sentence(dice) for _ in range(dice.randint(2, 6)))


def html_page(dice: random.Random) -> str:
    """An article as sites serve it: scripts, styles, navigation, a list of links, and some 1 to 60 paragraphs."""
    links = "".join(f'<li class="nav-item"><a href="/p/{n}">{dice.choice(WORDS)}</a></li>' for n in range(40))
    text = "".join(
        f'<p class="c{n % 7}">{paragraph(dice)} <a href="/x/{n}">{dice.choice(WORDS)}</a> {sentence(dice)}</p>\n'
        for n in range(dice.choice((1, 4, 8, 15, 30, 60)))
    )
    script = "var data = {" + ",".join(f'"k{n}": "{dice.random()}"' for n in range(150)) + "};"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{sentence(dice)}</title>'
        f"<style>body {{ margin: 0 }} .c1 {{ color: red }}</style><script>{script}</script></head><body>"
        f"<header><nav><ul>{links}</ul></nav></header><main><article><h1>{sentence(dice)}</h1>{text}</article></main>"
        f"<aside><ul>{links}</ul></aside><footer><p>© {sentence(dice)}</p></footer></body></html>"
    )


def pdf_document(dice: random.Random) -> bytes:
    """1 to 30 pages of 45 lines in a standard font, compressed."""
    pages = dice.choice((1, 2, 5, 10, 30))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Times-Roman >>"]
    for number in range(pages):
        shown = "".join(f"({sentence(dice)}) Tj 0 -15 Td\n" for _ in range(45))
        packed = zlib.compress(f"BT /F1 11 Tf 60 740 Td\n{shown}ET".encode())
        font = b"/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 612 792]"
        objects.append(b"<< /Type /Page /Parent 2 0 R /Contents %d 0 R %s >>" % (5 + 2 * number, font))
        objects.append(
            b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(packed), packed),
        )
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(pages))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, pages)
    data, places = b"%PDF-1.7\n", list[int]()
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(data))
    return data + head + table + end


def bare_html(paths: list[Path]) -> int:
    return sum(
        len(extract_plain_text(path.read_bytes().decode("utf-8", "replace"), main_content=True)) for path in paths
    )


def bare_pdf(paths: list[Path]) -> int:
    characters = 0
    for path in paths:
        try:
            document = pypdfium2.PdfDocument(path.read_bytes())
        except pypdfium2.PdfiumError:
            continue
        for number in range(len(document)):
            with contextlib.suppress(pypdfium2.PdfiumError):
                page = document[number]
                text = page.get_textpage()
                characters += len(text.get_text_range())
                text.close()
                page.close()
        document.close()
    return characters


def ours(sandbox: Sandbox) -> Callable[[list[Path]], int]:
    def read(paths: list[Path]) -> int:
        characters = 0
        for first in range(0, len(paths), 500):
            with contextlib.ExitStack() as stack:
                files = [(stack.enter_context(path.open("rb")), path) for path in paths[first : first + 500]]
                items = [ItemInput(file, path.name, path.stat().st_size) for file, path in files]
                texts = sandbox.parse(items, ParseOptions()).records["text"]
                characters += pc.sum(pc.utf8_length(texts)).as_py() or 0
        return characters

    return read


def cpu_seconds() -> float:
    """CPU time of this process and its sandbox: what a busy machine does not blur."""
    this = psutil.Process()
    return sum(p.cpu_times().user + p.cpu_times().system for p in (this, *this.children()))


def turn(read: Callable[[list[Path]], int], paths: list[Path]) -> tuple[float, float, int]:
    began, used = time.perf_counter(), cpu_seconds()
    characters = read(paths)
    return time.perf_counter() - began, cpu_seconds() - used, characters


def compare(label: str, paths: list[Path], bare: Callable[[list[Path]], int], sandbox: Sandbox) -> None:
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    readers = (("bare", bare), ("sheaf", ours(sandbox)))
    for _, read in readers:
        read(paths[:50])
    best: dict[str, tuple[float, float, int]] = {}
    for _ in range(TURNS):
        for name, read in readers:
            wall, used, characters = turn(read, paths)
            before = best.get(name, (wall, used, characters))
            best[name] = (min(wall, before[0]), min(used, before[1]), characters)
    for name, (wall, used, characters) in best.items():
        print(
            f"{label:<5} {name:<6} {len(paths):>5} files {megabytes:>7.1f} MB {characters / 1e6:>7.2f} M characters "
            f"{wall:>7.2f} s  {len(paths) / wall:>7.0f} files/s  {megabytes / wall:>6.1f} MB/s  {used:>6.2f} CPU s"
        )
    walls, used = (best["bare"][n] / best["sheaf"][n] for n in (0, 1))
    print(f"{label:<5} ratio to the bare library: {walls:.2f} by the wall clock, {used:.2f} by CPU time (bar: 0.80)")


def main() -> None:
    print(
        f"sheaf on Python {platform.python_version()}, resiliparse {version('resiliparse')}, "
        f"pypdfium2 {version('pypdfium2')}, {platform.machine()}, "
        f"{psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as temporary, Sandbox(Limits()) as sandbox:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        if len(sys.argv) < 2:
            dice = random.Random(7)
            for number in range(1000):
                (folder / f"{number:04d}.html").write_text(html_page(dice))
            for number in range(150):
                (folder / f"{number:04d}.pdf").write_bytes(pdf_document(dice))
        for label, bare in (("html", bare_html), ("pdf", bare_pdf)):
            paths = sorted(islice(folder.rglob(f"*.{label}"), 2000))
            if paths:
                compare(label, paths, bare, sandbox)


if __name__ == "__main__":
    main()
