"""Texts as the bytes of many formats. The same texts always give the same bytes: no clock, no random boundary."""

from __future__ import annotations

import csv
import gzip
import html
import io
import re
import sqlite3
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from pathlib import Path

import orjson

from sheaf.demo.collect import Text

PAGE_CHARACTERS = 1500  # a page's text: long enough that any reader finds the main part of the page
_FROM = re.compile(rb"^(>*From )", re.MULTILINE)  # a line that looks like the start of a message is quoted ("mboxrd")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can name


def gz(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=6, mtime=0)


def encoded(text: str, encoding: str) -> bytes:
    """With the byte order mark that the encoding's files begin with."""
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    return mark + text.encode(encoding)


def page(text: Text) -> bytes:
    """The text as a web page, with the furniture that pages have around their main text."""
    title = html.escape(text.name)
    paragraphs = "\n".join(f"<p>{html.escape(p)}</p>" for p in text.text.split("\n\n") if p.strip())
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>body {{ margin: 2em; }}</style></head>
<body>
<nav><a href="/">Home</a> <a href="/search">Search</a></nav>
<main><article>
<h1>{title}</h1>
{paragraphs}
</article></main>
<footer><a href="/about">About</a></footer>
<script>document.title += " ";</script>
</body>
</html>
""".encode()


def json_lines(rows: Sequence[Text]) -> bytes:
    return b"".join(orjson.dumps({"name": t.name, "text": t.text}) + b"\n" for t in rows)


def json_array(rows: Sequence[Text]) -> bytes:
    return orjson.dumps([{"name": t.name, "text": t.text} for t in rows], option=orjson.OPT_INDENT_2) + b"\n"


def table(rows: Sequence[Text]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["name", "text"])
    writer.writerows((t.name, t.text) for t in rows)
    return out.getvalue().encode()


def zipped(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def backup(*trees: Mapping[str, bytes]) -> bytes:
    """A tar.gz of all members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sorted({k: v for tree in trees for k, v in tree.items()}.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gz(out.getvalue())


def mailbox(messages: Sequence[tuple[Text, Text | None]]) -> bytes:
    """An mbox of (text, attached text): a text's name is the subject of its message."""
    return b"".join(_message(number, text, attached) for number, (text, attached) in enumerate(messages))


def mail_text(text: Text) -> str:
    """What a message says to its reader: the subject, then the text."""
    return f"{text.name}\n\n{text.text}"


def _message(number: int, text: Text, attached: Text | None) -> bytes:
    message = EmailMessage()
    message["From"] = "archive@example.org"
    message["To"] = "readers@example.org"
    message["Subject"] = text.name
    message["Date"] = f"Mon, 01 Jan 2024 {number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d} +0000"
    message["Message-ID"] = f"<{number}@example.org>"
    message.set_content(text.text, charset="utf-8", cte="quoted-printable")
    if attached is not None:
        name = f"{number}-{attached.name.rpartition('/')[2]}.txt"
        message.add_attachment(attached.text, charset="utf-8", cte="base64", filename=name)
        message.set_boundary(f"=_message_{number}")  # the default one is random
    body = _FROM.sub(rb">\1", message.as_bytes())
    return b"From archive@example.org Mon Jan  1 00:00:00 2024\n" + body.rstrip(b"\n") + b"\n\n"


def database(rows: Sequence[Text]) -> bytes:
    """An SQLite file with the table docstring(id, name, doc)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "docstrings.sqlite"
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("CREATE TABLE docstring (id INTEGER PRIMARY KEY, name TEXT NOT NULL, doc TEXT NOT NULL)")
            values = [(number, t.name, t.text) for number, t in enumerate(rows, 1)]
            connection.executemany("INSERT INTO docstring VALUES (?, ?, ?)", values)
        connection.close()
        return path.read_bytes()


def query_page(rows: Sequence[Text], first: int) -> bytes:
    """Rows of the table as the query's answer, one JSON object a line, numbered from `first`."""
    values = [{"id": number, "name": t.name, "doc": t.text} for number, t in enumerate(rows, first)]
    return b"".join(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE) for value in values)
