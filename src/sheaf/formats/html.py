"""HTML: the main text by resiliparse (Bevendorff et al., ECIR 2018), without navigation, scripts and styles; the title
in meta. A page in which no main text is found gives all its visible text. Holds a page in memory, and parses it once or
twice."""

from __future__ import annotations

import html
import re

from resiliparse.extract.html2text import extract_plain_text

from sheaf.formats.encoding import Decoded, codec_name, decode, too_many_controls
from sheaf.formats.piece import Context, Pieces, Record, Refused, Region
from sheaf.formats.stream import Stream
from sheaf.formats.text import charset_of

_META = re.compile(rb"<meta[^>]{0,300}charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.I)
_XML = re.compile(rb"<\?xml[^>]{0,200}encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{1,40})", re.I)
_TITLE = re.compile(r"<title[^>]{0,200}>(.{0,2000}?)</title", re.I | re.S)


def parse(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(context.limits.record_bytes)
    decoded = _decoded(raw, context)
    for start, end in decoded.bad:
        yield Region(start, end, "undecodable", "this line is not UTF-8, unlike the others")
    bad = sum(end - start for start, end in decoded.bad)
    title = title_of(decoded.text)
    meta = {"title": title} if title else None
    yield Record(main_text(decoded.text), 0, len(raw), decoded.encoding, meta=meta, weight=len(raw) - bad, gaps=bad > 0)


def _decoded(raw: bytes, context: Context) -> Decoded:
    """As text is decoded; but a page is often one long line, so single bad bytes are replaced, as browsers do."""
    label = declared(raw, context)
    try:
        return decode(raw, label)
    except Refused:
        encoding = codec_name(label) or "utf-8"
        text = raw.replace(b"\0", b"").decode(encoding, "replace")
        lost = text.count("\ufffd") + raw.count(0)
        if lost * 100 > len(text) or too_many_controls(raw):
            raise
        context.notes.append(f"{lost:,} bytes that are no {encoding} were replaced")
        return Decoded(text, encoding)


def main_text(page: str) -> str:
    return extract_plain_text(page, main_content=True) or visible_text(page)


def visible_text(page: str) -> str:
    """All that a page or a part of one shows, navigation included."""
    return extract_plain_text(page)


def title_of(page: str) -> str:
    found = _TITLE.search(page[: 1 << 16])
    return " ".join(html.unescape(found[1]).split()) if found else ""


def declared(raw: bytes, context: Context) -> str:
    """HTML Living Standard, 13.2.3.2: the transport layer first, then what the first kilobytes say."""
    label = charset_of(context.media)
    if label:
        return label
    found = _XML.match(raw[:512].lstrip()) or _META.search(raw[:4096])
    return found[1].decode("ascii") if found else ""
