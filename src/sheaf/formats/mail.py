"""E-mail and mbox: a record a message, its subject on top of the text; From, Subject and Date in meta.

text/plain is preferred, else the HTML part as text. Every other part is a member, read like any file: text becomes a
record, a zip is opened, a picture is refused by name. Only HTML that is, by multipart/alternative, a text/plain part
again is left out, and its bytes count with the message's. The standard library's parser with the compat32 policy: the
newer header objects raise on malformed headers, which real mail is full of.
"""

from __future__ import annotations

import binascii
import email
import email.message
import email.policy
import re
from collections.abc import Iterator
from email.errors import HeaderParseError, InvalidBase64LengthDefect, MessageError
from email.header import decode_header

from sheaf.formats.encoding import codec_name, decode
from sheaf.formats.html import main_text
from sheaf.formats.piece import Context, Member, Pieces, Record, Refused, Region
from sheaf.formats.rows import lines_or_refusals
from sheaf.formats.stream import Stream, from_bytes

_SEPARATOR = re.compile(rb"From \S.*\d\d:\d\d")
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.M)
_ENVELOPE = re.compile(rb"\A>?From \S[^\n]*\n")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_LOOSE_FIELD = re.compile(rb"^([A-Za-z][A-Za-z0-9-]*)[ \t]+:", re.M)
_LONGEST_FIELD = 1 << 16  # characters of a header field that are looked at
Part = email.message.Message


class _Policy(email.policy.Compat32):
    """Header fields hold what was sent, also in UTF-8 (RFC 6532) or other bytes that are no ASCII."""

    def header_fetch_parse(self, name: str, value: str) -> str:
        return _repaired(str(value)[:_LONGEST_FIELD])


_POLICY = _Policy()


def parse_message(stream: Stream, context: Context) -> Pieces:
    raw = stream.read_all(context.limits.document_bytes)
    yield from _message(raw, 0, len(raw), "", context)


def parse_mbox(stream: Stream, context: Context) -> Pieces:
    """Messages begin at a "From " line after an empty line (RFC 4155); streamed, one message at a time."""
    for cut in _messages(stream, context.limits.document_bytes):
        if isinstance(cut, Region):
            yield cut
            continue
        start, end, data = cut
        body = _QUOTED_FROM.sub(rb"\1", data.partition(b"\n")[2])
        yield from _message(body, start, end, f"message@{start}", context)


def _messages(stream: Stream, limit: int) -> Iterator[tuple[int, int, bytes] | Region]:
    lines: list[bytes] = []
    first = last = size = 0
    blank = True
    for line in lines_or_refusals(stream, limit):
        if isinstance(line, Region):
            if lines:
                yield first, line.start, b"".join(lines)
            yield line
            lines, size, first = [], 0, line.end
            continue
        start, end, data = line
        if blank and lines and data.startswith(b"From ") and _SEPARATOR.match(data):
            yield first, start, b"".join(lines)
            lines, size, first = [], 0, start
        lines.append(data)
        size += len(data)
        last = end
        blank = data in (b"\n", b"\r\n")
        if size > limit:
            yield Region(first, end, "record-too-large", f"more than {limit >> 20} MB in one message")
            lines, size, first = [], 0, end
    if lines:
        yield first, last, b"".join(lines)


def _message(raw: bytes, start: int, end: int, within: str, context: Context) -> Pieces:
    """The message at [start, end): its body as a record that weighs what the attachments leave."""
    try:
        message = email.message_from_bytes(_tidied(raw), policy=_POLICY)
        parts = list(_leaves(message))
        body = _body(parts)
        repeats = {id(part) for part in _repeats(message)}
        text, encoding = _text_of(body, context) if body is not None else ("", "ascii")
        meta = {name: value for name in ("Subject", "From", "Date") if (value := _header(message, name))}
    except (MessageError, ValueError, LookupError, RecursionError) as error:
        yield Region(start, end, "corrupt", f"not a message: {type(error).__name__}")
        return
    others = [part for part in parts if part is not body and id(part) not in repeats and _payload(part)]
    weights = [min(_encoded_size(part), end - start) for part in others]
    left = end - start
    for number, (part, weight) in enumerate(zip(others, weights, strict=True), 1):
        weight = min(weight, left)
        left -= weight
        inner = from_bytes(_payload(part))
        yield Member(_filename(part, number), inner, weight=weight, media=_media(part), within=within)
    subject = meta.get("Subject", "")
    text = "\n\n".join(t for t in (subject, text.strip("\r\n")) if t)
    yield Record(text, start, end, encoding, meta={k.lower(): v for k, v in meta.items()}, weight=left)


def _tidied(raw: bytes) -> bytes:
    """Without a mailbox's line before it, and without the blanks that RFC 822 let stand before a field's colon: the
    parser would end the header there."""
    raw = _ENVELOPE.sub(b"", raw, count=1)
    found = re.search(rb"\r?\n\r?\n", raw)
    end = found.start() if found else len(raw)
    return _LOOSE_FIELD.sub(rb"\1:", raw[:end]) + raw[end:]


def _leaves(part: Part) -> Iterator[Part]:
    """The parts that hold something. A message in the message is one of them: it is a file of its own."""
    if part.get_content_type() == "message/rfc822" or not part.is_multipart():
        yield part
    else:
        for inner in _children(part):
            yield from _leaves(inner)


def _body(parts: list[Part]) -> Part | None:
    """The first text/plain part that is no attachment, else the first text/html one."""
    shown = [part for part in parts if part.get_content_disposition() != "attachment"]
    for kind in ("text/plain", "text/html"):
        for part in shown:
            if part.get_content_type() == kind and _payload(part).strip():
                return part
    return None


def _repeats(message: Part) -> Iterator[Part]:
    """The HTML parts that a multipart/alternative offers beside the same text as text/plain. In multipart/mixed, HTML
    is a part of its own."""
    for group in message.walk():
        if group.get_content_type() != "multipart/alternative":
            continue
        choices = _children(group)
        if any(_shown(part, "text/plain") and _payload(part).strip() for part in choices):
            yield from (part for choice in choices for part in _related(choice) if _shown(part, "text/html"))


def _related(part: Part) -> Iterator[Part]:
    """The part, or what a multipart/related holds: a page and its pictures are one choice."""
    if part.get_content_type() == "multipart/related":
        for inner in _children(part):
            yield from _related(inner)
    else:
        yield part


def _children(part: Part) -> list[Part]:
    payload = part.get_payload() if part.is_multipart() else None
    return [inner for inner in payload if isinstance(inner, email.message.Message)] if isinstance(payload, list) else []


def _shown(part: Part, kind: str) -> bool:
    """Part of the message as it is read, not a file that is sent along."""
    file = part.get_content_disposition() == "attachment" or part.get_filename() or part.is_multipart()
    return part.get_content_type() == kind and not file


def _text_of(part: Part, context: Context) -> tuple[str, str]:
    raw = _payload(part)
    try:
        decoded = decode(raw, str(part.get_param("charset", "") or ""))
    except Refused as refused:
        label = codec_name(str(part.get_param("charset", "") or "")) or "utf-8"
        context.notes.append(f"a body is damaged: {refused.detail}")
        return raw.decode(label, "replace"), label
    text = main_text(decoded.text) if part.get_content_type() == "text/html" else decoded.text
    return text, decoded.encoding


def _payload(part: Part) -> bytes:
    inner = _children(part)
    for _ in range(2):
        try:
            payload = inner[0].as_bytes() if inner else part.get_payload(decode=True)
            return _unfinished(part, payload) if isinstance(payload, bytes) else b""
        except (ValueError, LookupError):
            part.set_param("charset", "us-ascii")  # the parser tries the declared one on the way, and some raise
    return b""


def _unfinished(part: Part, payload: bytes) -> bytes:
    """Base64 that is cut off one character into a group: the library gives it back as it is written."""
    if not any(isinstance(defect, InvalidBase64LengthDefect) for defect in part.defects):
        return payload
    letters = _NOT_BASE64.sub(b"", payload)
    return binascii.a2b_base64(letters[: len(letters) // 4 * 4])


def _encoded_size(part: Part) -> int:
    try:
        payload = part.get_payload()
    except (ValueError, LookupError):
        payload = None
    return len(payload.encode("utf-8", "replace")) if isinstance(payload, str) else len(_payload(part))


def _filename(part: Part, number: int) -> str:
    try:
        name = part.get_filename()
    except (ValueError, LookupError):
        name = None
    return (_clean(_words(name)) if name else "") or f"part-{number}"


def _media(part: Part) -> str:
    charset = part.get_param("charset", "")
    return f"{part.get_content_type()}; charset={charset}" if isinstance(charset, str) else part.get_content_type()


def _header(message: Part, name: str) -> str:
    value = message.get(name)
    return _clean(_words(str(value))) if value is not None else ""


def _words(value: str) -> str:
    """RFC 2047 words decoded; what cannot be is left as it is."""
    if "=?" not in value:
        return value
    try:
        parts = decode_header(value)
    except (HeaderParseError, ValueError):
        return value
    return "".join(_word(data, label) for data, label in parts)


def _word(data: bytes | str, label: str | None) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode(codec_name(label or "") or "utf-8", "replace")
    except LookupError:
        return data.decode("utf-8", "replace")


def _clean(value: str) -> str:
    """One line, and nothing that UTF-8 cannot write."""
    return " ".join(_repaired(value).encode("utf-8", "replace").decode().split())


def _repaired(value: str) -> str:
    """Bytes that came as surrogates, decoded as well as can be."""
    if not any("\udc80" <= c <= "\udcff" for c in value):
        return value
    raw = value.encode("utf-8", "surrogateescape")
    try:
        return decode(raw).text
    except Refused:
        return raw.decode("utf-8", "replace")
