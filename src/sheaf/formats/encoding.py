"""From bytes to text: byte-order mark, strict UTF-8, UTF-16/32 without a mark, the declared charset, then detection.

Detection (`guess`) is built on chardet 7 (0BSD). Of 153 labelled texts of the node-chardet and charset-normalizer test
folders 149 are decoded right and none wrongly, the others refused; chardet alone has 5 wrong, charset-normalizer 3.5
has 98 right. Of three lines cut from them 96% come out right and none wrong, of single words 60% and 3%
(bench/encoding.py).

A guess is refused rather than made when the bytes hold NULs or more than 1% control characters, when its confidence is
under SURE, or when the text that comes out holds unassigned or private characters as real text does not. UTF-8 with a
few bad lines stays UTF-8: the bad lines are named, so that the caller can charge them, if at least 99% of the lines are
good. Cost: strict UTF-8 is one pass of C; detection, which takes by far the longest, looks at 64 KB at most.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np

from sheaf.formats.guess import SAMPLE, Guess, guesses, script
from sheaf.formats.stream import Refused

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDE = frozenset({"utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"})
# Encodings in which the bytes of newline, comma, tab, semicolon and quote may be part of another character.
STATEFUL = frozenset({"iso2022_jp", "iso2022_kr", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_3", "hz", "utf-7"})

# What a label means in practice (WHATWG Encoding Standard, section 4.2): the superset that real files use.
_SUPERSET = {
    "iso8859-1": "cp1252", "ascii": "cp1252", "latin_1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030",
    "euc_kr": "cp949", "shift_jis": "cp932", "iso8859-9": "cp1254", "tis-620": "cp874", "iso8859-11": "cp874",
    "big5": "big5hkscs", "cp950": "big5hkscs", "shift_jis_2004": "cp932",
}  # fmt: skip
_NOT_CHARSETS = frozenset(
    {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "undefined", "mbcs", "oem"}
)
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\r\f\v\b\x1b\x0e\x0f") + b"\x7f"


_PLAIN = bytes(range(0x20, 0x7F)) + b"\t\n\r"
_ASCII = bytes(range(0x80))
SURE = 0.7  # a guess that is less sure is not taken
PROVED = 0.99  # confidence where bytes can hardly be anything else, though nothing says what they are
MIXED = 100  # characters, below which chance makes UTF-16 of other bytes
SHORT = 12  # characters; UTF-16 without a mark is believed below this only where all are Latin


@dataclass(frozen=True, slots=True)
class Decoded:
    """encoding: a `Guess`, with its confidence, where it was one. bad: byte ranges of lines which were left out of the
    text. mark: bytes of the byte-order mark."""

    text: str
    encoding: str
    bad: tuple[tuple[int, int], ...] = ()
    mark: int = 0


_forced = ""


def force(codec: str) -> None:
    """From now on every text is in this codec, because the recipe says so; "": they are as they are."""
    global _forced
    _forced = codec


def forced() -> str:
    return _forced


def decode(raw: bytes, declared: str = "") -> Decoded:
    """The text. Raises Refused("undecodable")."""
    if _forced:
        return _by_force(raw, _forced)
    for mark, encoding in MARKS:
        if raw.startswith(mark):
            return _marked(raw, len(mark), encoding)
    if b"\0" in raw:
        wide = wide_encoding(raw)
        if wide:
            return _marked(raw, 0, Guess(wide, PROVED))
        return _utf8_by_line(raw, "it holds NUL bytes and is no UTF-16 or UTF-32")
    if too_many_controls(raw):
        wide = wide_encoding(raw)  # Chinese or Japanese UTF-16 need not hold a single NUL
        if wide:
            return _marked(raw, 0, Guess(wide, PROVED))
        raise Refused("undecodable", "too many control characters")
    legacy = codec_name(declared)
    if b"\x1b" in raw or legacy in STATEFUL:
        stateful = _stateful(raw, legacy)
        if stateful:
            return stateful
    try:
        return Decoded(raw.decode(), "utf-8")
    except UnicodeDecodeError as error:
        why = f"byte {error.start}: {error.reason}"
    if legacy and legacy not in WIDE and legacy != "utf-8":
        text = _try(raw, legacy)
        if text is not None:
            return Decoded(text, legacy)
    if _looks_utf8(raw):
        return _utf8_by_line(raw, f"not UTF-8 at {why}", encoding=Guess("utf-8", PROVED))
    return _detected(raw, why)


def codec_name(label: str) -> str:
    """Python's name of a charset label, after the superset that it means in practice; "" if there is none."""
    label = label.strip().strip("\"'").lower()
    if not label or not label.isascii() or len(label) > 40:
        return ""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return ""
    if name in _NOT_CHARSETS:
        return ""
    return {"utf-8-sig": "utf-8", "utf-16": "", "utf-32": ""}.get(name, _SUPERSET.get(name, name))


def wide_encoding(raw: bytes) -> str:
    """The UTF-16 or UTF-32 that bytes without a mark are in, by their NULs; "" if they are not."""
    head = raw[:SAMPLE]
    plain = len(head) - len(head.translate(None, _PLAIN))
    if plain > 0.75 * len(head) and head.count(0) < 0.2 * len(head):
        return ""  # ASCII with some NULs: as UTF-16 it would be Chinese by chance
    best, best_kinds = "", 1 << 30
    for encoding, width in (("utf-32-le", 4), ("utf-32-be", 4), ("utf-16-le", 2), ("utf-16-be", 2)):
        sample = raw[: SAMPLE - SAMPLE % width] if len(raw) > SAMPLE else raw
        if len(sample) % width:
            continue
        try:
            text = sample.decode(encoding, "strict")
        except UnicodeDecodeError as error:
            # A sample may end inside a surrogate pair; anything earlier is not this encoding.
            if len(raw) <= SAMPLE or error.start < len(sample) - width:
                continue
            text = sample[: error.start].decode(encoding)
        if not plausible(text, 0.01) or "\0" in text or not _has_ends(text):
            continue
        kinds = len({ord(c) >> 8 for c in text})  # the wrong byte order scatters characters over the whole plane
        if len(text) < SHORT and max(text, default="") > "\xff":
            continue  # any four bytes with a NUL are two letters of something
        if len(text) < MIXED and not _of_one_script(text):
            continue
        if kinds < best_kinds:
            best, best_kinds = encoding, kinds
        if width == 4:
            break
    return best


def _of_one_script(text: str) -> bool:
    """Whether but one in eight letters is Latin or of the commonest other script: bytes of anything else are spread
    over many, and over Chinese characters that hardly anybody writes (U+3400 to U+4DBF)."""
    found = Counter(_script(c) for c in text if c.isalpha())
    latin = found.pop("LATIN", 0)
    return (found.total() - max(found.values(), default=0)) * 8 <= found.total() + latin


def _script(letter: str) -> str:
    """As `guess.script`, with Korean apart, and the rare Chinese characters."""
    if letter < "\u3400":
        return script(letter)
    return "rare" if letter < "\u4e00" else "HANGUL" if "\uac00" <= letter < "\ud7b0" else script(letter)


def too_many_controls(raw: bytes) -> bool:
    most = max(2, len(raw) // 100)
    return (len(raw) < 1 << 13 or _low(raw) > most) and len(raw) - len(raw.translate(None, _CONTROLS)) > most


def _low(raw: bytes) -> int:
    """At least as many as there are control characters, in half the time that counting them exactly takes."""
    values, found = np.frombuffer(raw, np.uint8), 0
    for start in range(0, len(raw), SAMPLE):
        part = values[start : start + SAMPLE]
        low = (part < 0x20) & (part != 0x0A) & (part != 0x0D) & (part != 0x09)
        found += int(np.count_nonzero(low | (part == 0x7F)))
    return found


def plausible(text: str, limit: float) -> bool:
    """Whether unassigned, private-use, surrogate and control characters are at most this share of the text."""
    sample = text[:4096]
    odd = sum(unicodedata.category(c) in ("Cn", "Co", "Cs", "Cc") for c in sample if c not in "\t\n\r\f\v\x1b")
    return odd <= limit * len(sample)


def _has_ends(text: str) -> bool:
    """Whether something ends a word or a line now and then, as in writing; in tables of numbers nothing does."""
    sample = text[:4096]
    ends = sum(unicodedata.category(c)[0] in "ZP" or c in "\t\n\r" for c in sample)
    return len(sample) < 100 or ends * 200 >= len(sample)


def _marked(raw: bytes, mark: int, encoding: str) -> Decoded:
    if encoding == "utf-8" and b"\0" in raw:
        return _utf8_by_line(raw[mark:], "it holds NUL bytes", mark)
    try:
        text = raw[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            return _utf8_by_line(raw[mark:], f"not UTF-8 at byte {error.start + mark}", mark)
        raise Refused("undecodable", f"not {encoding} at byte {error.start + mark}: {error.reason}") from None
    return Decoded(text, encoding, mark=mark)


def _by_force(raw: bytes, encoding: str) -> Decoded:
    """Lines that are not in this encoding after all are left out, where lines can be told apart before decoding."""
    mark = next((len(m) for m, e in MARKS if e == encoding and raw.startswith(m)), 0)
    try:
        return Decoded(raw[mark:].decode(encoding), encoding, mark=mark)
    except UnicodeDecodeError as error:
        why = f"not {encoding}, which the recipe names, at byte {mark + error.start}: {error.reason}"
    good: list[str] = []
    bad: list[tuple[int, int]] = []
    at = mark
    for line in raw[mark:].splitlines(keepends=True) if encoding not in WIDE | STATEFUL else []:
        text = _or_none(line, encoding)
        if text is None:
            bad.append((at, at + len(line)))
        else:
            good.append(text)
        at += len(line)
    if not good:
        raise Refused("undecodable", why)
    return Decoded("".join(good), encoding, tuple(bad), mark)


def _or_none(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _utf8_by_line(raw: bytes, why: str, mark: int = 0, encoding: str = "utf-8") -> Decoded:
    """UTF-8 without its bad lines, if at least 99 of 100 are good."""
    good: list[str] = []
    bad: list[tuple[int, int]] = []
    at = mark
    lines = raw.split(b"\n")
    for number, line in enumerate(lines):
        end = at + len(line) + (number + 1 < len(lines))
        try:
            if b"\0" in line:
                raise UnicodeDecodeError("utf-8", line, 0, 1, "NUL")
            good.append(line.decode())
        except UnicodeDecodeError:
            bad.append((at, end))
            if len(bad) * 100 > len(lines):
                raise Refused("undecodable", why) from None
        at = end
    return Decoded("\n".join(good), encoding, tuple(bad), mark)


def _looks_utf8(raw: bytes) -> bool:
    """Whether valid multi-byte sequences outnumber bad bytes ten to one: then it is UTF-8, and damaged."""
    text = raw.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return len(text) - len(text.encode("ascii", "ignore")) - bad > 10 * bad


def _stateful(raw: bytes, legacy: str) -> Decoded | None:
    """ISO-2022 and HZ are ASCII to every other test; their escape sequences tell."""
    if not raw.isascii():
        return None
    names = [legacy] if legacy in STATEFUL else []
    if b"\x1b$)C" in raw:
        names.append("iso2022_kr")
    if b"\x1b$B" in raw or b"\x1b$@" in raw or b"\x1b(J" in raw:
        names += ["iso2022_jp", "iso2022_jp_2"]
    if b"\x0e" in raw and raw.count(b"\x1b$)A") + raw.count(b"\x1b$)G"):
        raise Refused("undecodable", "ISO-2022-CN, which is not read")
    for name in names:
        text = _try(raw, name)
        if text is not None:
            return Decoded(text, name if name == legacy else Guess(name, PROVED))
    return None


def _try(raw: bytes, encoding: str) -> str | None:
    try:
        text = raw.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None
    return text if plausible(text, 0.05) else None


def _detected(raw: bytes, why: str) -> Decoded:
    found = guesses(_sample(raw))
    if found and found[0].confidence >= SURE:
        for guess in found:
            for name in dict.fromkeys((str(guess), codec_name(guess))):
                text = _try(raw, name)
                if text is not None and plausible(text, 0.005):
                    return Decoded(text, Guess(name, guess.confidence))
    hint = f"it may be {found[0]} (confidence {found[0].confidence:.2f})" if found else "no other encoding fits"
    raise Refused("undecodable", f"not UTF-8 at {why}; {hint}")


def _sample(raw: bytes) -> bytes:
    """The stretch that detection looks at: from the line of the first byte that is not ASCII."""
    if len(raw) <= SAMPLE:
        return raw
    first = len(raw) - len(raw.lstrip(_ASCII))
    start = raw.rfind(b"\n", 0, first) + 1
    return raw[start : start + SAMPLE]
