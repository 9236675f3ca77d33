"""Plain text, Markdown and source code: the whole member is one record. Holds it in memory, up to limits.record_mb."""

from __future__ import annotations

import re

from sheaf.formats import fast
from sheaf.formats.encoding import STATEFUL, codec_name, decode, forced
from sheaf.formats.normalise import is_plain
from sheaf.formats.piece import Context, Pieces, Record, Region
from sheaf.formats.stream import Stream

_XML_ENCODING = re.compile(rb"<\?xml[^>]{0,200}encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{1,40})")
_CODING = re.compile(rb"^(?:[^\n]*\n)?[ \t\f]*#[^\n]*?coding[:=][ \t]*([-\w.]{1,40})")  # PEP 263
_TAIL = 4096
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.I)


def parse(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(context.limits.record_bytes)
    yield from whole(raw, declared(raw, context))


def whole(raw: bytes, label: str) -> Pieces:
    """One record for all of it, and a region for each bad line that had to be left out."""
    if is_plain(raw) and not forced() and codec_name(label) not in STATEFUL:
        yield Record("", 0, len(raw), "utf-8", normal=stripped(raw))
        return
    if fast.worth(len(raw)) and not forced() and codec_name(label) not in STATEFUL:
        from sheaf.formats import kernel_rows  # here: see `fast`

        if end := kernel_rows.normal_end(raw):
            yield Record("", 0, len(raw), "utf-8", normal=memoryview(raw)[:end])
            return
    decoded = decode(raw, label)
    for start, end in decoded.bad:
        yield Region(start, end, "undecodable", "this line is not UTF-8, unlike the others")
    bad = sum(end - start for start, end in decoded.bad)
    yield Record(decoded.text, decoded.mark, len(raw), decoded.encoding, weight=len(raw) - bad, gaps=bad > 0)


def stripped(raw: bytes) -> bytes | memoryview:
    """ASCII without blanks at its end; a long text is not copied for that."""
    end = len(raw[-_TAIL:].rstrip())
    if len(raw) <= _TAIL or not end:
        return raw.rstrip()
    return memoryview(raw)[: len(raw) - _TAIL + end]


def declared(raw: bytes, context: Context) -> str:
    """The charset that the text itself or its content type names."""
    for pattern in (_XML_ENCODING, _CODING):
        found = pattern.match(raw[:512])
        if found:
            return found[1].decode("ascii", "replace")
    return charset_of(context.media)


def charset_of(media: str) -> str:
    found = _CHARSET.search(media)
    return found[1] if found else ""
