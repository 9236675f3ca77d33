"""The beginning of a stream, and what it says about the type: one small test for each format that has no magic bytes.

A test that answers True overrules the suffix, so each asks for evidence that other text does not show by chance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson
import pyarrow as pa

from sheaf.formats.encoding import too_many_controls

BZIP2 = tuple(b"BZh%d1AY&SY" % n for n in range(1, 10)) + tuple(b"BZh%d\x17rE8P\x90" % n for n in range(1, 10))
ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60)))


@dataclass(frozen=True, slots=True)
class Peek:
    """head: the first bytes (up to 64 KB). whole: whether that is all. text: its first 8 KB as text, roughly
    decoded, without blanks in front. suffix: ".csv", lower case."""

    head: bytes
    whole: bool
    text: str
    suffix: str


_ARC = re.compile(r"[a-z][a-z0-9+.-]{1,15}:[^\n]{1,4000}? [0-9a-f.:]{7,39} \d{14,17} [^\n]{1,400}? \d{1,12}\r?\n")
_HTML = re.compile(
    r"(?:<\?xml[^>]*\?>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html[\s>]|head[\s>]|body[\s>]|title>)", re.I | re.S
)
_XML = re.compile(r"<\?xml\s|<!DOCTYPE\s|<svg[\s>]|<rss[\s>]|<feed[\s>]")
_PDF = re.compile(rb"(?:\A\xef\xbb\xbf|[\r\n])%PDF-\d\.\d\s")
XML_SUFFIXES = (
    *(".xml", ".xsd", ".xsl", ".xslt", ".rss", ".atom", ".svg", ".rdf", ".fb2", ".kml", ".gpx"),
    *(".opf", ".ncx", ".dbk", ".docbook", ".dita", ".tei", ".nxml", ".plist", ".wsdl", ".tmx", ".xlf"),
)
_MBOX = re.compile(r"From \S.*\d\d:\d\d.*\n[A-Za-z][A-Za-z0-9-]*:")
_ENVELOPE = re.compile(r">?From \S[^\n]*\n")  # that mailboxes put before a message
_HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]*)[ \t]*: ?(?=\S|\r?\n[ \t])", re.M)
_KNOWN_HEADERS = frozenset(
    ("from", "to", "cc", "subject", "date", "received", "return-path", "message-id", "mime-version", "delivered-to",
     "content-type", "reply-to", "sender", "x-mailer", "in-reply-to", "references", "content-transfer-encoding")
)  # fmt: skip
_TIME = r"(?:\d{1,3}:)?\d{1,2}:\d{1,2}[,.]\d{1,3}"
_SRT = re.compile(rf"\d+[ \t]*\r?\n[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}")
_TROFF = re.compile(r"(?:[.']\\\"[^\n]*\n|\s)*[.'](?:TH|Dd|so)\s")


def is_arc(p: Peek) -> bool:
    """The line that begins a record of a web archive: URL, address, date, type and length."""
    return _ARC.match(p.text) is not None


def is_tar(p: Peek) -> bool:
    """The checksum of the first header, which every kind of tar has (POSIX.1-1988, ustar)."""
    block = p.head[:512]
    if len(block) < 512 or not block[0]:
        return False
    try:
        claimed = int(block[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return claimed == sum(block[:148]) + 8 * 32 + sum(block[156:])


def is_webp(p: Peek) -> bool:
    return p.head.startswith(b"RIFF") and p.head.startswith(b"WEBP", 8)


def is_wav(p: Peek) -> bool:
    return p.head.startswith(b"RIFF") and p.head.startswith(b"WAVE", 8)


def is_bmp(p: Peek) -> bool:
    """ "BM", two reserved words that are zero, and a header size that exists: text can begin with BM."""
    return p.head.startswith(b"BM") and p.head[6:10] == b"\0\0\0\0" and p.head[14:15] in b"\x0c\x28\x38\x40\x6c\x7c"


def is_mp3(p: Peek) -> bool:
    """An ID3v2 tag of a known version, or the header of an MPEG frame of layer III with a rate that exists."""
    head = p.head
    if head.startswith(b"ID3"):
        return len(head) > 10 and head[3] in (2, 3, 4) and all(size < 0x80 for size in head[6:10])
    frame = len(head) > 4 and head[0] == 0xFF and head[1] in (0xFA, 0xFB, 0xF2, 0xF3, 0xE2, 0xE3)
    return frame and head[2] >> 4 not in (0, 15) and (head[2] >> 2) & 3 != 3 and b"\0" in head


def is_html(p: Peek) -> bool:
    return p.text.startswith("<") and _HTML.match(p.text) is not None


def is_xml(p: Peek) -> bool:
    return p.text.startswith("<") and _XML.match(p.text) is not None


def is_pdf(p: Peek) -> bool:
    """Behind a byte-order mark or a transport's lines, as readers accept it within the first kilobyte."""
    start = p.head[:1024]
    return b"%PDF-" in start and _PDF.search(start) is not None and b" obj" in p.head


def is_parquet(p: Peek) -> bool:
    """Its magic is letters (PARE: its footer is encrypted), and so few that text can begin with them."""
    return p.head.startswith((b"PAR1", b"PARE")) and _is_binary(p)


def is_orc(p: Peek) -> bool:
    return p.head.startswith(b"ORC") and _is_binary(p)


def is_arrow_stream(p: Peek) -> bool:
    """No magic: a message's length (before 0.15 without the four bytes of ones) and a schema that can be read."""
    size = int.from_bytes(p.head[4:8] if p.head.startswith(b"\xff\xff\xff\xff") else p.head[:4], "little")
    if not 16 <= size < len(p.head) or size % 4:
        return False
    try:
        pa.ipc.read_schema(pa.py_buffer(p.head))
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True


def may_be_xml(p: Peek) -> bool:
    return p.text.startswith("<")


def is_mbox(p: Peek) -> bool:
    return p.text.startswith("From ") and _MBOX.match(p.text) is not None


def is_message(p: Peek) -> bool:
    """At least three known header fields at the top, one of them of the transport or From/To/Subject."""
    return _headers(p) >= 3


def may_be_message(p: Peek) -> bool:
    return _headers(p) >= 1


def is_notebook(p: Peek) -> bool:
    """Cells, and the mark of the format; that may lie behind the peek."""
    if not p.text.startswith("{") or b'"cell_type"' not in p.head:
        return False
    return p.suffix == ".ipynb" or (b'"nbformat"' in p.head and b'"metadata"' in p.head)


def is_json(p: Peek) -> bool:
    """The whole is one JSON value with brackets; a suffix decides for what is longer than the peek."""
    if not p.text.startswith(("{", "[")) or not p.whole:
        return False
    return _loads(p.head) is not None


def is_json_lines(p: Peek) -> bool:
    """Several lines, the first ones (all but the last, if the peek cuts it) each a JSON object or array."""
    if not p.text.startswith(("{", "[")):
        return False
    lines = [line for line in p.head.split(b"\n", 12) if line.strip()]
    if len(lines) > 11 or not p.whole:
        lines = lines[:-1]
    if len(lines) < (1 if p.suffix in (".jsonl", ".ndjson") else 2):
        return False
    good = sum(isinstance(_loads(line), (dict, list)) for line in lines)
    return good >= 1 and good * 2 > len(lines) and _loads(lines[0]) is not None


def is_table(p: Peek) -> bool:
    """Without a suffix that says so: at least four lines, each with the same number, two or more, of one separator."""
    if p.suffix or "\0" in p.text:
        return False
    lines = p.text.split("\n", 21)
    lines = [line for line in lines[:-1] if line.strip()]
    if len(lines) < 4:
        return False
    return any(len({line.count(mark) for line in lines}) == 1 and lines[0].count(mark) >= 2 for mark in "\t;,|")


def is_vtt(p: Peek) -> bool:
    return p.text[:6] == "WEBVTT" and p.text[6:7] in ("", " ", "\t", "\n", "\r")


def is_srt(p: Peek) -> bool:
    return _SRT.match(p.text) is not None


def may_be_srt(p: Peek) -> bool:
    return "-->" in p.text


def is_troff(p: Peek) -> bool:
    return p.text.startswith((".", "'")) and _TROFF.match(p.text) is not None


def _headers(p: Peek) -> int:
    if not (p.text[:1].isalpha() or p.text.startswith(">From ")):
        return 0  # most of all a page: looking for an empty line in one takes as long as parsing it
    envelope = _ENVELOPE.match(p.text)
    start = envelope.end() if envelope else 0
    if _HEADER.match(p.text, start) is None:
        return 0
    top = re.split(r"\r?\n\r?\n", p.text[start:], maxsplit=1)[0]
    return len({name.lower() for name in _HEADER.findall(top)} & _KNOWN_HEADERS)


def _is_binary(p: Peek) -> bool:
    return b"\0" in p.head or too_many_controls(p.head)


def _loads(data: bytes) -> object:
    try:
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return None
