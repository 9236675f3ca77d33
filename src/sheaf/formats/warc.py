"""WARC (ISO 28500) and ARC web archives, streamed: what a server answered is a member, read by its own format.

The payload of each response, resource and conversion is a member: its name is the target URI inside the record's id,
its content type the one that the server sent, and URL, date and status join the meta of its records. Requests,
descriptions, revisits and answers without a body are structure. A record is charged its bytes from its header to the
end of its block.

Records are split by their Content-Length. One without, or whose length lies, costs what follows up to the next line
that begins a record; an archive that ends inside a record keeps what is there of it. A splitter of its own, because a
library that decompresses for itself cannot say which bytes it read. Memory: 64 KB of look-ahead, a block of payload.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sheaf.formats.http_payload import HEAD, Block, Payload, end_of_fields, fields_of, http_payload, plain_payload
from sheaf.formats.piece import Context, Member, Pieces, Region
from sheaf.formats.stream import Stream

_WARC = re.compile(rb"(?<=\n)WARC/\d\.\d{1,2}[ \t]*\r?\n")
_ARC_LINE = rb"[a-z][a-z0-9+.-]{1,15}:[^\n]{1,4000}? \d{12,17} [^\n]{1,400}? \d{1,12}\r?\n"
_ARC = re.compile(rb"(?<=\n)" + _ARC_LINE)
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)\d*")
_OVERLAP = 1 << 13  # longer than anything that _WARC or _ARC can match


@dataclass(frozen=True, slots=True)
class _Head:
    """size: bytes of the header. kind: http (an HTTP message), plain (the block is the payload), part (of a payload
    that was split over records), or structure."""

    size: int
    length: int
    kind: str
    url: str = ""
    id: str = ""
    media: str = ""
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Damage:
    reason: str
    detail: str


_ReadHead = Callable[[bytes, int], _Head | _Damage]


def parse_warc(stream: Stream, context: Context) -> Pieces:
    yield from _records(stream, context, _warc_head, _WARC)


def parse_arc(stream: Stream, context: Context) -> Pieces:
    yield from _records(stream, context, _arc_head, _ARC)


def _records(stream: Stream, context: Context, read_head: _ReadHead, mark: re.Pattern[bytes]) -> Pieces:
    while True:
        _skip_blank(stream)
        start = stream.position
        raw = stream.peek(HEAD)
        if not raw:
            return
        head = read_head(raw, start)
        if isinstance(head, _Damage):
            _skip_to(stream, mark)
            yield Region(start, stream.position, head.reason, head.detail)
            continue
        stream.read(head.size)
        yield from _record(stream, context, head, start)


def _record(stream: Stream, context: Context, head: _Head, start: int) -> Pieces:
    block = Block(stream, head.length)
    payload = None
    if head.kind == "http":
        payload = http_payload(block, context.budget)
    elif head.kind == "plain":
        payload = plain_payload(block, head.media)
    if payload is not None and (payload.stream.peek(1) or payload.stream.problem):
        yield from _member(stream, block, payload, head, start)
        return
    block.drain()
    if block.left:
        detail = f"the archive ends {block.left} bytes before the end of this record"
        yield Region(start, stream.position, "truncated", detail)
    elif head.kind == "part":
        yield Region(start, stream.position, "unsupported", "a payload that is split over several records")


def _member(stream: Stream, block: Block, payload: Payload, head: _Head, start: int) -> Pieces:
    about = {**head.about, **({"status": payload.status} if payload.status else {})}
    member = Member(head.url, payload.stream, media=payload.media, within=head.id, about=about)
    yield member
    inside = stream.position - start  # how far its reader came
    block.drain()
    size = stream.position - start
    member.end = stream.position
    if block.left or payload.broken():  # the break takes what nobody read, and a byte if all was
        member.weight = max(min(inside, size - 1), 0)
    else:
        member.weight = size
    member.rest = size - member.weight


def _skip_blank(stream: Stream) -> None:
    while head := stream.peek(64):
        blank = len(head) - len(head.lstrip(b"\r\n"))
        stream.read(blank)
        if blank < len(head):
            return


def _skip_to(stream: Stream, mark: re.Pattern[bytes]) -> None:
    """Take what comes before the next line that begins a record."""
    stream.read(1)
    while head := stream.peek(HEAD):
        found = mark.search(head)
        keep = _OVERLAP if len(head) == HEAD else 0
        stream.read(found.start() if found else len(head) - keep)
        if found or not keep:
            return


def _warc_head(raw: bytes, start: int) -> _Head | _Damage:
    if not raw.startswith(b"WARC/"):
        return _Damage("corrupt", f"no record begins at byte {start}: a length before it is wrong")
    size = end_of_fields(raw)
    if not size:
        return _cut(raw, start)
    fields = fields_of(raw[:size])
    length = fields.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return _Damage("corrupt", f"the record at byte {start} has no length")
    kind, media = fields.get("warc-type", "").lower(), fields.get("content-type", "")
    url = fields.get("warc-target-uri", "").strip("<>")  # wget wrote them, as its reading of the standard
    about = {"url": url, "date": fields.get("warc-date", "")}
    if "warc-truncated" in fields:
        about["truncated"] = fields["warc-truncated"]
    about = {name: value for name, value in about.items() if value}
    id = fields.get("warc-record-id", "").strip("<>") or f"record@{start}"
    return _Head(size, int(length), _warc_kind(kind, media, url, fields), url, id, media, about)


def _warc_kind(kind: str, media: str, url: str, fields: dict[str, str]) -> str:
    if kind == "continuation" or "warc-segment-number" in fields:
        return "part"
    if kind == "response" and (media.startswith("application/http") or url.startswith("http")):
        return "http"
    return "plain" if kind in ("response", "resource", "conversion") and media != "text/dns" else "structure"


def _arc_head(raw: bytes, start: int) -> _Head | _Damage:
    """URL IP-address Archive-date Content-type Archive-length; version 2 has five fields more before the length."""
    end = raw.find(b"\n") + 1
    if not end:
        return _cut(raw, start)
    line = raw[:end].decode("utf-8", "replace").strip()
    for spaces in (4, 9):
        found = line.rsplit(" ", spaces)
        if len(found) == spaces + 1 and _DATE.fullmatch(found[2]) and found[-1].isascii() and found[-1].isdigit():
            url, _, date, media = found[:4]
            about = {"url": url, "date": _DATE.sub(r"\1-\2-\3T\4:\5:\6Z", date)}
            return _Head(end, int(found[-1]), _arc_kind(url), url, f"record@{start}", media, about)
    return _Damage("corrupt", f"no record begins at byte {start}, or its length is no number")


def _arc_kind(url: str) -> str:
    if url.startswith("http"):
        return "http"
    return "structure" if url.startswith(("filedesc:", "dns:")) else "plain"


def _cut(raw: bytes, start: int) -> _Damage:
    if len(raw) < HEAD:
        return _Damage("truncated", "the archive ends inside the header of a record")
    return _Damage("corrupt", f"the header of the record at byte {start} does not end")
