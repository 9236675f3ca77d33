"""One text, one form: line ends, NFC, no control characters, no mojibake; and the id that follows from it.

ASCII text takes one scan (some 600 MB/s). Other text adds an NFC quick check and a regular expression that looks for
leads of mojibake with what can follow them in text that was decoded wrongly (50 million characters a second in all);
ftfy (Speer 2019) sees only the lines where it finds some. The result is a fixed point: normalising it again
changes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sheaf.formats.schema import CHATS

_CONTROL = bytes(c for c in range(0x20) if c not in (0x09, 0x0A))
_DROPPED = {c: None for c in range(0x20) if c not in (0x09, 0x0A)}
_CACHED = 1 << 17  # of values that numpy looks at together
_SHORT = 2000  # characters, below which a regular expression is faster than numpy
_SURROGATE = re.compile("[\ud800-\udfff]")
# UTF-8 read as Latin-1, cp1252 or cp1250 (Â-ô), cp1251 (Р, С), Mac Roman (√ ¬ ‚ ∆ –) or cp437 (├ ┬ Γ).
_AFTER = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
# Each kind of lead, and what may follow it. C1 controls are mojibake whatever follows.
_PAIRS = (
    ("Â-ôĂĹĐ", f"{_AFTER}ŚŤŹśťźˇ˘ŁĄŞŻ˛łąşĽ˝ľż"),
    ("РСГВ", f"{_AFTER}ЂЃѓЉЊЌЋЏђљњќћџЎўЈҐЁЄЇІіґё№єјЅѕї"),
    ("√", r"^ \t\n\d("),
    ("¬", r"^ \t\nA-Za-z"),
    ("‚", "Ä"),
    ("∆", r"^ \t\n"),
    ("├┬╨╤", r"^ \t\n─-╿"),
    ("Γ", "ÇéîòèôöûªÉÖÜ"),
)
# One class first, so that the scan for it is a table look-up a character.
_MOJIBAKE = re.compile(
    f"[\x80-\x9f{''.join(leads for leads, _ in _PAIRS)}](?:(?<=[\x80-\x9f])|"
    + "|".join(f"(?<=[{leads}])[{after}]" for leads, after in _PAIRS)
    + ")"
)


def normalise(text: str, mojibake: bool = True) -> tuple[str, str]:
    """(the normal form, what was repaired: "bom,newlines,mojibake,controls,surrogates,nfc", "" if nothing).

    Blanks at the end of the text are cut without being named: no reader sees them.
    """
    if text.isascii() and not _has_controls(text):
        return text.rstrip(), ""
    repairs: set[str] = set()
    for _ in range(16):  # two passes settle it; the bound is for text made to make repairs chase each other
        before = text
        text = _once(text, mojibake, repairs)
        if text == before or text == before.rstrip():  # cutting the end makes nothing new
            break
    order = ("bom", "newlines", "mojibake", "controls", "surrogates", "nfc")
    return text, ",".join(name for name in order if name in repairs)


def is_plain(data: bytes) -> bool:
    """Whether this is ASCII without control characters: its own normal form, but for blanks at the end. One look at the
    bytes (5 GB/s), where decoding them and looking at the text copies them three times."""
    return data.isascii() and b"\x7f" not in data and not _controls_in(data)


def normalise_all(texts: Sequence[str], mojibake: bool = True) -> tuple[list[str], list[str]]:
    """(the normal forms, what was repaired in each); one look at all of them where they are ASCII."""
    together = "".join(texts)
    if together.isascii() and not _has_controls(together):
        return [text.rstrip() for text in texts], [""] * len(texts)
    pairs = [normalise(text, mojibake) for text in texts]
    return [text for text, _ in pairs], [repairs for _, repairs in pairs]


def record_id(text: str, kind: str = "text", content: bytes = b"") -> bytes:
    """blake2b-128 of the kind and the normalised text; content: what else the record is (`content_of`)."""
    return content_id(text.encode(), kind, content)


def content_id(text: bytes, kind: str, content: bytes) -> bytes:
    """The `record_id` of a text in UTF-8."""
    digest = hashlib.blake2b(f"{kind}\0".encode(), digest_size=16)
    digest.update(text)
    if content:
        digest.update(b"\0" + content)
    return digest.digest()


def content_of(kind: str, payload: bytes, messages: bytes, meta: str) -> bytes:
    """What a record is beside its kind and text: a payload, or messages with the tools that the conversation offers.

    meta: JSON. Tools are written out for the model, so the same words with other tools are another record.
    """
    if kind not in CHATS or '"tools"' not in meta:
        return payload or messages
    tools: Any = orjson.loads(meta).get("tools")
    return messages + b"\0" + orjson.dumps(tools) if tools else messages


def _once(text: str, mojibake: bool, repairs: set[str]) -> str:
    if text.startswith("\ufeff"):
        text = text.lstrip("\ufeff")
        repairs.add("bom")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        repairs.add("newlines")
    if mojibake and not text.isascii() and _maybe_mojibake(text):
        fixed = _fix_mojibake(text)
        if fixed != text:
            text = fixed
            repairs.add("mojibake")
    data = text.encode("utf-8", "surrogatepass")
    if _controls_in(data):
        text = text.translate(_DROPPED)
        repairs.add("controls")
    if not text.isascii():
        if b"\xed" in data and not _encodable(text):  # no surrogate begins with another byte
            text = _SURROGATE.sub("\ufffd", text)
            repairs.add("surrogates")
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
            repairs.add("nfc")
    return text.rstrip()


def _maybe_mojibake(text: str) -> bool:
    """Whether _MOJIBAKE finds anything, by two look-ups in tables: a tenth of its time in long texts."""
    if len(text) < _SHORT:
        return _MOJIBAKE.search(text) is not None
    leads, followers = mojibake_tables()
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16)
    for start in range(0, len(units), _CACHED):
        kinds = leads[units[start : start + _CACHED]]
        places = np.flatnonzero(kinds)
        kinds = kinds[places]
        if (kinds & 1).any():
            return True
        places += start + 1
        inside = places < len(units)
        if (followers[units[places[inside]]] & kinds[inside]).any():
            return True
    return False


@functools.cache
def mojibake_tables() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """For each UTF-16 unit the kind of lead that it is, a bit each (1: it needs nothing after it), and the kinds that
    it may follow. Half of a character beyond 16 bits follows whatever the whole would."""
    every = "".join(map(chr, range(1 << 16)))
    leads, followers = np.zeros(1 << 16, np.uint16), np.zeros(1 << 16, np.uint16)
    leads[0x80:0xA0] = 1
    for bit, (lead, after) in enumerate(_PAIRS, 1):
        leads[[ord(c) for c in re.findall(f"[{lead}]", every)]] = 1 << bit
        followers[[ord(c) for c in re.findall(f"[{after}]", every)]] |= 1 << bit
    return leads, followers


def _has_controls(text: str) -> bool:
    """Deleting them from the UTF-8 bytes and comparing lengths is ten times as fast as a regular expression, and
    counting them with numpy, piece by piece inside the processor's cache, is twice as fast again."""
    return _controls_in(text.encode("utf-8", "surrogatepass"))


def _controls_in(data: bytes) -> bool:
    if len(data) < _CACHED:
        return len(data.translate(None, _CONTROL)) != len(data)
    values = np.frombuffer(data, np.uint8)
    for start in range(0, len(values), _CACHED):
        part = values[start : start + _CACHED]
        low = np.count_nonzero(part < 0x20) - np.count_nonzero(part == 0x0A)
        if low and low != np.count_nonzero(part == 0x09):
            return True
    return False


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fix_mojibake(text: str) -> str:
    from ftfy import fix_encoding  # 60 ms that most children never need

    # Line by line: one bad line in a good file is repaired, and the cost is that of the bad lines alone.
    return "\n".join(
        fix_encoding(line) if not line.isascii() and _MOJIBAKE.search(line) else line for line in text.split("\n")
    )
