"""One text, one form: line ends, NFC, no control characters, no mojibake; and the id that follows from it.

ASCII text takes one scan (about 1 GB/s); other text adds an NFC quick check and one character-class scan for the lead
characters of mojibake. ftfy (Speer 2019) sees only lines in which a lead is followed by what can follow it in text that
was decoded wrongly. The result is a fixed point: normalising it again changes nothing.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f]")
_DROPPED = {c: None for c in range(0x20) if c not in (0x09, 0x0A)}
_SURROGATE = re.compile("[\ud800-\udfff]")
# UTF-8 read as Latin-1, cp1252 or cp1250 (Â-ô), cp1251 (Р, С), Mac Roman (√ ¬ ‚ ∆ –) or cp437 (├ ┬ Γ).
_LEAD = re.compile("[\x80-\x9fÂ-ôĂĹĐРСГВ√¬‚∆├┬Γ╨╤]")
_AFTER = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MOJIBAKE = re.compile(
    f"[\x80-\x9f]|[Â-ôĂĹĐ][{_AFTER}ŚŤŹśťźˇ˘ŁĄŞŻ˛łąşĽ˝ľż]|[РСГВ][{_AFTER}ЂЃѓЉЊЌЋЏђљњќћџЎўЈҐЁЄЇІіґё№єјЅѕї]"
    "|√[^ \t\n\\d(]|¬[^ \t\nA-Za-z]|‚Ä|∆[^ \t\n]|[├┬╨╤][^ \t\n─-╿]|Γ[ÇéîòèôöûªÉÖÜ]"
)


def normalise(text: str, mojibake: bool = True) -> tuple[str, str]:
    """(the normal form, what was repaired: "bom,newlines,mojibake,controls,surrogates,nfc", "" if nothing).

    Blanks at the end of the text are cut without being named: no reader sees them.
    """
    if text.isascii() and not _CONTROL.search(text):
        return text.rstrip(), ""
    repairs: set[str] = set()
    for _ in range(16):  # two passes settle it; the bound is for text made to make repairs chase each other
        before = text
        text = _once(text, mojibake, repairs)
        if text == before:
            break
    order = ("bom", "newlines", "mojibake", "controls", "surrogates", "nfc")
    return text, ",".join(name for name in order if name in repairs)


def record_id(text: str) -> bytes:
    """blake2b-128 of the kind and the normalised text."""
    return hashlib.blake2b(b"text\0" + text.encode(), digest_size=16).digest()


def _once(text: str, mojibake: bool, repairs: set[str]) -> str:
    if text.startswith("\ufeff"):
        text = text.lstrip("\ufeff")
        repairs.add("bom")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        repairs.add("newlines")
    if mojibake and not text.isascii() and _LEAD.search(text):
        fixed = _fix_mojibake(text)
        if fixed != text:
            text = fixed
            repairs.add("mojibake")
    if _CONTROL.search(text):
        text = text.translate(_DROPPED)
        repairs.add("controls")
    if not text.isascii():
        if _SURROGATE.search(text):
            text = _SURROGATE.sub("\ufffd", text)
            repairs.add("surrogates")
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
            repairs.add("nfc")
    return text.rstrip()


def _fix_mojibake(text: str) -> str:
    if not _MOJIBAKE.search(text):
        return text
    from ftfy import fix_encoding  # 60 ms that most children never need

    # Line by line: one bad line in a good file is repaired, and the cost is that of the bad lines alone.
    return "\n".join(
        fix_encoding(line) if not line.isascii() and _MOJIBAKE.search(line) else line for line in text.split("\n")
    )
