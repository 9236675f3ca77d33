"""Write the tables of docs/formats.md and docs/intake.md from the code they speak of, so that they cannot go stale.

A page holds `<!-- begin NAME … -->` and `<!-- end NAME -->`; what is between them is written here, the rest by people.
What a record is and where it lies is said below, once for each parser; a parser without a line there is an error.
Use: python scripts/intake_pages.py          (a test fails while the pages are not what this writes)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sheaf.corpus.schema import DROPS
from sheaf.formats.detect import UNREAD
from sheaf.formats.mapping import NAMED, Mapped, apply
from sheaf.formats.reasons import REASONS
from sheaf.formats.table import FORMATS
from sheaf.sources.reasons import REFUSALS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("formats.md", "intake.md")
BYTES = '`{"bytes": [from, to]}`'
# Parser module → (name, what a record is, where it lies), in the order of the page.
PARSERS: dict[str, tuple[str, str, str]] = {
    "text": ("Text and source code", "the file", BYTES),
    "html": ("HTML, XHTML", "the main text of the page", BYTES),
    "xml_text": ("XML", "the text, or an entry of a feed or dump", BYTES),
    "json_lines": ("JSON Lines", "a line", BYTES),
    "json_document": ("JSON", "an element of an array of objects, or the document", BYTES),
    "csv_rows": ("CSV, TSV", "a row", BYTES),
    "yaml_toml": ("YAML, TOML", "a document, or an element of a list of objects", BYTES),
    "subtitles": ("Subtitles", "the dialogue of the file", '`{"cues": [1, n]}`'),
    "parquet": ("Parquet", "a row", '`{"row": n}`, from 0'),
    "arrow_file": ("Arrow, Feather", "a row", '`{"row": n}`, from 0'),
    "orc": ("ORC", "a row", '`{"row": n}`, from 0'),
    "avro": ("Avro", "a row", '`{"row": n}`, from 0'),
    "spreadsheet": ("Workbooks", "a row of a sheet", '`{"sheet": name, "row": n}`, from 1'),
    "pdf": ("PDF", "a page", '`{"page": n}`, from 1'),
    "docx": ("Word", "the document", '`{"paragraphs": [first, last]}`'),
    "word_binary": ("Word before 2007", "the document", '`{"paragraphs": [first, last]}`'),
    "pptx": ("PowerPoint", "a slide", '`{"slide": n}`, from 1'),
    "powerpoint_binary": ("PowerPoint before 2007", "a slide", '`{"slide": n}`, from 1'),
    "opendocument": (
        "OpenDocument text, presentations, drawings",
        "the document, a slide, a page",
        '`{"paragraphs": …}`, `{"slide": n}`, `{"page": n}`',
    ),
    "rtf": ("RTF", "the document", BYTES),
    "epub": ("EPUB", "a chapter", '`{"chapter": n}`, from 1'),
    "notebook": ("Jupyter notebook", "the notebook", '`{"cells": [1, n]}`'),
    "mail": ("E-mail, mbox", "a message; other parts and attachments are members", BYTES),
    "msg": ("Outlook message", "the message, and each attached one", '`{"part": "0"}`'),
    "warc": ("Web archives", "what a server answered, read by its own format", "by the format inside"),
    "image": ("Pictures", "the picture, kind `image`", BYTES),
    "audio": ("Sound", "the recording, kind `audio`", BYTES),
    "compressed": ("Compression", "what is inside", "by the format inside"),
    "zip_archive": ("zip", "what is inside", "by the format inside"),
    "tar_archive": ("tar", "what is inside", "by the format inside"),
    "seven_zip": ("7z", "what is inside", "by the format inside"),
    "ole": ("OLE compound file", "what is embedded; with a password: refused", "by the format inside"),
    "labels": ("Table of labels", "none: it labels the files beside it", "–"),
}
# A row for each named mapping.
ROWS: dict[str, dict[str, object]] = {
    "alpaca": {"instruction": "Translate to French.", "input": "Good day", "output": "Bonjour"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
    "openai": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    "prompt-completion": {"prompt": "The capital of Peru is", "completion": " Lima."},
    "preference": {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
    "question-answer": {"question": "Who wrote Emma?", "answer": "Jane Austen"},
    "text": {"text": "A text of its own.", "url": "https://example.org"},
}


def types() -> str:
    """Every type that is read, by parser."""
    rows: list[tuple[str, ...]] = []
    modules = {f.parse.partition(":")[0] for f in FORMATS}
    unknown = sorted(modules ^ PARSERS.keys())
    if unknown:
        raise ValueError(f"scripts/intake_pages.py and formats/table.py differ in {', '.join(unknown)}")
    for module, (name, record, place) in PARSERS.items():
        of = [f for f in FORMATS if f.parse.partition(":")[0] == module]
        suffixes = " ".join(dict.fromkeys(f"`{s}`" for f in of for s in f.suffixes))
        media = ", ".join(f"`{f.media}`" for f in of)
        rows.append((name, record, place, suffixes or "–", media))
    return _table(("what", "a record is", "locator", "suffixes", "media types"), rows)


def refused() -> str:
    """What is recognised and refused by name."""
    return ", ".join(sorted({name for *_, name in UNREAD}, key=str.lower)) + "."


def reasons() -> str:
    """Every code of the quarantine and of dropped records."""
    known = {**REASONS, **REFUSALS, "http-NNN": "The server answers with this status, such as `http-404`."}
    rows = [(f"`{code}`", "quarantined", meaning) for code, meaning in sorted(known.items())]
    return _table(("reason", "", "meaning"), [*rows, *((f"`{c}`", "dropped", m) for c, m in DROPS.items())])


def mappings() -> str:
    """Every named mapping, with a row and what becomes of it."""
    if ROWS.keys() != NAMED.keys():
        raise ValueError("scripts/intake_pages.py needs an example row for each mapping of formats/mapping.py")
    rows = [(f"`{name}`", f"`{json.dumps(row)}`", _result(apply(row, NAMED[name]))) for name, row in ROWS.items()]
    return _table(("map", "a row", "becomes"), rows)


PARTS: Mapping[str, Callable[[], str]] = {"types": types, "refused": refused, "reasons": reasons, "mappings": mappings}


def page(name: str) -> str:
    """The page with its parts as they should be."""
    text = (DOCS / name).read_text(encoding="utf-8")
    for part, write in PARTS.items():
        block = re.compile(rf"(<!-- begin {part} [^\n]*-->\n).*?(<!-- end {part} -->)", re.S)
        text = block.sub(lambda found, write=write: f"{found[1]}\n{write()}\n\n{found[2]}", text)
    return text


def _result(made: Mapped) -> str:
    return f"{made.kind}: `{json.dumps(made.text, ensure_ascii=False)[1:-1]}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(page(name), encoding="utf-8")
