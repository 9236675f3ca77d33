"""Small PDFs, written object by object, with whatever a test wants to be wrong with them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")  # ISO 32000-1, algorithm 2
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


def lines(*words: str) -> bytes:
    """The content of a page that shows these lines."""
    shown = b" 0 -20 Td ".join(b"(" + word.encode("cp1252") + b") Tj" for word in words)
    return b"BT /F1 12 Tf 72 720 Td " + shown + b" ET"


def stream(data: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), extra, data)


def deflated(data: bytes, extra: bytes = b"") -> bytes:
    return stream(zlib.compress(data, 9), b"/Filter /FlateDecode " + extra)


def pdf(
    pages: Sequence[bytes], more: dict[int, bytes] | None = None, catalog: bytes = b"", page: bytes = b"",
    trailer: bytes = b"", count: int | None = None,
) -> bytes:  # fmt: skip
    """pages: contents, or whole objects where they begin with "<<". more: further objects, from number 1000 on.
    catalog, page, trailer: further entries of these dictionaries. count: what the page tree claims."""
    objects: dict[int, bytes] = {1: b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog, 3: FONT}
    kids: list[bytes] = []
    for number, content in enumerate(pages):
        here = 10 + 2 * number
        kids.append(b"%d 0 R" % here)
        resources = b"/Resources << /Font << /F1 3 0 R >> >>" if b"/Resources" not in page else b""
        objects[here] = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s %s >>" % (
            *(here + 1, resources, page),
        )
        objects[here + 1] = content if content.startswith(b"<<") else stream(content)
    shown = len(pages) if count is None else count
    objects[2] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), shown)
    return written({**objects, **(more or {})}, trailer)


def written(objects: dict[int, bytes], trailer: bytes = b"") -> bytes:
    data = b"%PDF-1.7\n"
    places: dict[int, int] = {}
    for number, body in sorted(objects.items()):
        places[number] = len(data)
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%d 1\n%010d 00000 n \n" % (number, at) for number, at in sorted(places.items()))
    size = max(places) + 1
    end = b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, len(data))
    return data + b"xref\n0 1\n0000000000 65535 f \n" + table + end


def locked(text: bytes, password: bytes) -> bytes:
    """A PDF of one page under the 40-bit encryption of ISO 32000-1, 7.6.3; an empty password opens for anybody."""
    owner, identity, permissions = b"o" * 32, b"i" * 16, b"\xfc\xff\xff\xff"
    key = hashlib.md5((password + PAD)[:32] + owner + permissions + identity).digest()[:5]
    page = stream(_rc4(hashlib.md5(key + (11).to_bytes(3, "little") + b"\0\0").digest()[:10], text))
    crypt = b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (
        owner.hex().encode(),
        _rc4(key, PAD).hex().encode(),
    )
    trailer = b"/Encrypt 1000 0 R /ID [<%s> <%s>]" % (identity.hex().encode(), identity.hex().encode())
    return pdf([page], {1000: crypt}, trailer=trailer)


def _rc4(key: bytes, data: bytes) -> bytes:
    box = list(range(256))
    j = 0
    for i in range(256):
        j = (j + box[i] + key[i % len(key)]) & 255
        box[i], box[j] = box[j], box[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) & 255
        j = (j + box[i]) & 255
        box[i], box[j] = box[j], box[i]
        out.append(byte ^ box[(box[i] + box[j]) & 255])
    return bytes(out)
