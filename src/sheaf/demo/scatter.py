"""Scatter collected texts over real places, plant repeats and broken files, and write down the truth while doing so.

Places: a folder tree (sources, documents, pages, JSONL, CSV, JSON, gzip files, other encodings), a zip inside a tar.gz,
an SQLite table, a mailbox, and the folder that a web server on this machine offers. Which text goes where follows from
a hash of its name, so the same texts always give the same bytes, and what did not change is not written again: a second
demo in the same folder finds every item unchanged. Cost: a few seconds; the places hold about what was collected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from sheaf import files
from sheaf.demo import broken, write
from sheaf.demo.collect import Text
from sheaf.demo.truth import Planted, Truth, key_of

MIN_CHARACTERS = 40  # the length rule of the demo's recipe: some docstrings are shorter
SOURCES = ("files", "backup", "docstrings", "mail", "web")  # in recipe order
_ROWS = 250  # docstrings a JSONL, CSV or JSON file
_PAGE_ROWS = 2000  # an item of a table is that many rows of the query, as JSON lines
_PAGES = 40  # documents on the web server: each is a request
# What a language's texts are written in, besides UTF-8 with and without a mark: the encodings of its older files.
_LEGACY = {"ja": "shift_jis", "zh_CN": "gb18030", "de": "latin-1", "fr": "latin-1", "es": "latin-1", "pt_BR": "latin-1"}
_UNICODE = ("utf-8-sig", "utf-16-le", "utf-16-be")


@dataclass(frozen=True)
class Scattered:
    """data: the folder of all places. pages: what the web server offers, relative to its root. truth: what is there."""

    data: Path
    pages: tuple[str, ...]
    truth: Truth


def scatter(pool: Mapping[str, Sequence[Text]], data: Path) -> Scattered:
    """Write all places under `data`, and remove there what an earlier demo with other texts left."""
    planter = Planter()
    _plant_code(planter, pool["code"])
    _plant_prose(planter, [*pool["prose"], *pool["manual"]])
    _plant_docstrings(planter, pool["docstring"])
    _plant_foreign(planter, pool["foreign"])
    broken.plant(planter, pool["docstring"], pool["code"])
    return planter.finish(data)


class Planter:
    """Collects what will lie where; every method plants one thing and notes what is true of it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.items: list[Planted] = []
        self.backup: dict[str, bytes] = {}
        self.zipped: dict[str, bytes] = {}
        self.backup_texts: list[str] = []
        self.rows: list[Text] = []
        self.mail: list[Text] = []
        self.attached: list[Text] = []
        self.paged: set[str] = set()

    def file(self, path: str, data: bytes, texts: Sequence[str] = (), source: str = "files") -> None:
        """A file of the tree or the web folder. texts: what it holds, in the normal form."""
        path = self._free(source, path)
        planted = Planted(source, path, len(data), tuple(key_of(t) for t in texts), _short(texts))
        self.item(planted, data)

    def page(self, path: str, text: Text, source: str) -> None:
        """A web page: its main text is a matter of the reader, that it gives one record is not."""
        path, data = self._free(source, path), write.page(text)
        self.paged.add(text.text)
        self.item(Planted(source, path, len(data), ("~" + key_of(f"{source}/{path}"),)), data)

    def item(self, planted: Planted, data: bytes) -> None:
        self.files[f"{planted.source}/{planted.path}"] = data
        self.items.append(planted)

    def _free(self, source: str, path: str) -> str:
        """Two texts may come by the same name, once its suffix is given ("x" and "x.txt")."""
        while f"{source}/{path}" in self.files:
            path = f"also/{path}"
        return path

    def pack(self, path: str, text: str, *, zipped: bool, line_end: str = "\n") -> None:
        """A member of the backup: in the tar itself, or in the zip that lies in it."""
        (self.zipped if zipped else self.backup)[path] = text.replace("\n", line_end).encode()
        self.backup_texts.append(text)

    def finish(self, data: Path) -> Scattered:
        """Build the places that hold many texts in one file, and write everything."""
        backup = write.backup(self.backup, {"older.zip": write.zipped(self.zipped)})
        self.file("backup.tar.gz", backup, self.backup_texts, source="backup")
        messages = list(zip_longest(self.mail, self.attached[: len(self.mail)]))
        sent = [write.mail_text(t) for t in self.mail] + [a.text for _, a in messages if a is not None]
        self.file("project.mbox", write.mailbox(messages), sent, source="mail")
        self.files["docstrings.sqlite"] = write.database(self.rows)
        for first in range(0, len(self.rows), _PAGE_ROWS):
            page = self.rows[first : first + _PAGE_ROWS]
            texts = [t.text for t in page]
            keys, size = tuple(key_of(t) for t in texts), len(write.query_page(page, first + 1))
            self.items.append(Planted("docstrings", f"rows-{first:010d}", size, keys, _short(texts)))
        _write_tree(data, self.files)
        pages = tuple(i.path for i in self.items if i.source == "web")
        return Scattered(data, pages, Truth(SOURCES, tuple(self.items)))


def _plant_code(planter: Planter, texts: Sequence[Text]) -> None:
    for text in texts:
        lot = _lot(text)
        if lot < 75:
            planter.file(f"code/{text.name}", text.text.encode(), [text.text])
        else:
            planter.pack(f"code/{text.name}", text.text, zipped=lot < 90)
        if lot < 6:  # the same file again in the backup, saved on another system
            planter.pack(f"copies/{text.name}", text.text, zipped=True, line_end="\r\n")


def _plant_prose(planter: Planter, texts: Sequence[Text]) -> None:
    pages = 0
    for text in texts:
        lot, name = _lot(text), _file_name(text)
        if lot < 40:
            planter.file(f"documents/{name}", text.text.encode() + b"\n", [text.text])
        elif lot < 55:
            planter.file(f"compressed/{name}.gz", write.gz(text.text.encode()), [text.text])
        elif lot < 65 and _can_be_page(planter, text):
            planter.page(f"pages/{name}.html", text, "files")
        elif lot < 78:
            planter.mail.append(text)
        elif lot < 88 and pages < _PAGES:
            pages += 1
            _plant_on_web(planter, text, pages)
        else:
            planter.pack(f"documents/{name}", text.text, zipped=lot % 2 == 0)
        if lot in (0, 1, 41, 66, 80):  # again, on the web or in the mail
            planter.attached.append(text)


def _file_name(text: Text) -> str:
    """With a suffix that says that it is text: without one, a list of names may well be taken for a table."""
    name = text.name.replace(":", "_")
    return name if name.endswith((".md", ".rst", ".txt")) else f"{name}.txt"


def _can_be_page(planter: Planter, text: Text) -> bool:
    """Long enough, and not a page already: whether two pages that differ in their titles alone are equal is a matter
    of what a reader takes for main text."""
    return len(text.text) >= write.PAGE_CHARACTERS and text.text not in planter.paged


def _plant_on_web(planter: Planter, text: Text, number: int) -> None:
    if number % 2 and _can_be_page(planter, text):
        planter.page(f"page-{number:02d}.html", text, "web")
    else:
        planter.file(f"text-{number:02d}.txt", text.text.encode(), [text.text], source="web")


def _plant_docstrings(planter: Planter, texts: Sequence[Text]) -> None:
    """Half of them in the database, the others in files of rows; some in both."""
    in_files: list[Text] = []
    for text in texts:
        lot = _lot(text)
        if lot < 50:
            planter.rows.append(text)
        if lot >= 44:
            in_files.append(text)
    writers = (("jsonl", write.json_lines), ("csv", write.table), ("json", write.json_array))
    for number, start in enumerate(range(0, len(in_files), _ROWS)):
        rows = in_files[start : start + _ROWS]
        suffix, writer = writers[number % len(writers)]
        planter.file(f"docstrings/part-{number:03d}.{suffix}", writer(rows), [t.text for t in rows])


def _plant_foreign(planter: Planter, texts: Sequence[Text]) -> None:
    """In turn: the language's old encoding, and Unicode with a mark; the same text again in plain UTF-8 at times."""
    for number, text in enumerate(texts):
        language = text.name.split("/")[0]
        encoding = _LEGACY.get(language, "utf-16-le")
        if number % 3 == 2 or not _writable(text.text, encoding):
            encoding = _UNICODE[number % len(_UNICODE)]
        path = f"languages/{encoding}/{text.name.replace(':', '_')}"
        planter.file(path, write.encoded(text.text, encoding), [text.text])
        if number % 4 == 0:
            planter.pack(f"languages/{text.name}", text.text, zipped=False)


def _writable(text: str, encoding: str) -> bool:
    """Whether the text survives the encoding, and holds enough of it for any reader to recognise it."""
    try:
        same = text.encode(encoding).decode(encoding) == text
    except UnicodeError:
        return False
    return same and len(text) >= 400 and sum(not c.isascii() for c in text) >= 40


def _lot(text: Text) -> int:
    """0…99, by the name."""
    return int.from_bytes(hashlib.blake2b(f"{text.kind}/{text.name}".encode(), digest_size=8).digest(), "big") % 100


def _short(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({key_of(t) for t in texts if len(t) < MIN_CHARACTERS}))


def _write_tree(data: Path, tree: Mapping[str, bytes]) -> None:
    with files.disk_errors(data):
        wanted = {data / name: content for name, content in tree.items()}
        for path in sorted(p for p in data.rglob("*") if p.is_file()) if data.exists() else []:
            if path not in wanted:
                path.unlink()
        for path, content in wanted.items():
            if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
