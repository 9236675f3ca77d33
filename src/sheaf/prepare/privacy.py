"""Personal data and secrets in a text: where they are, by kind.

Patterns find candidates, and a checksum decides wherever the kind has one: payment cards (Luhn, ISO/IEC 7812-1), IBANs
(mod 97, ISO 13616), Chinese resident ids (GB 11643-1999). So a long number alone is nothing. What is found is told as
kind and place, never as text: this is where it would leak. Cost: one scan a pattern, some 3 MB/s in all.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

KINDS = ("email", "phone", "ip", "card", "iban", "national-id", "secret")


@dataclass(frozen=True, slots=True)
class Finding:
    """text[start:end] is personal data or a secret. kind: of KINDS."""

    kind: str
    start: int
    end: int


def find(text: str) -> list[Finding]:
    """All findings by place; where two overlap, the first kind of the table below has it."""
    found: list[Finding] = []
    for kind, pattern, holds in _RULES:
        if kind == "secret" and not any(lead in text for lead in _LEADS):
            continue  # that alternation is the dearest of all, and hardly any text has one
        for match in pattern.finditer(text):
            if holds(match[0]) and not any(f.start < match.end() and match.start() < f.end for f in found):
                found.append(Finding(kind, match.start(), match.end()))
    return sorted(found, key=lambda f: f.start)


def counts(text: str) -> dict[str, int]:
    """How many of each kind are in the text; kinds that are not are left out."""
    result: dict[str, int] = {}
    for finding in find(text):
        result[finding.kind] = result.get(finding.kind, 0) + 1
    return result


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


def _card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def _iban(text: str) -> bool:
    """ISO 13616: the first four characters last, letters as 10 to 35, and the rest of a division by 97 is 1."""
    plain = re.sub(r"\s", "", text)
    number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
    return 15 <= len(plain) <= 34 and int(number) % 97 == 1


def _resident_id(text: str) -> bool:
    """GB 11643-1999: weights 2^(17-i) mod 11; the date inside must be one."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    check = "10X98765432"[sum(int(d) * w for d, w in zip(text[:17], weights, strict=True)) % 11]
    month, day = int(text[10:12]), int(text[12:14])
    return check == text[17].upper() and 1 <= month <= 12 and 1 <= day <= 31


def _public_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _always(_: str) -> bool:
    return True


def _phone(text: str) -> bool:
    return 8 <= len(re.sub(r"\D", "", text)) <= 15


_LEADS = (
    *("-----BEGIN ", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xoxa-", "xoxb-", "xoxp-"),
    *("xoxr-", "xoxs-", "sk-", "sk_live_", "AIza", "glpat-", "hf_", "eyJ"),
)
# First comes what is surest: a card is not a phone number, and an id not a card.
_RULES: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        "secret",
        re.compile(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:(?!-----)[\s\S]){0,8000}?-----END (?:[A-Z]+ )*PRIVATE KEY-----"
            r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS access key id
            r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b"
            r"|\bxox[abprs]-[A-Za-z0-9-]{20,}"  # Slack
            r"|\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}|\bsk_live_[A-Za-z0-9]{20,}"
            r"|\bAIza[0-9A-Za-z_-]{35}|\bglpat-[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}\b"
            r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON web token
        ),
        _always,
    ),
    ("email", re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"), _always),
    ("national-id", re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{9}[\dXx](?![\dA-Za-z])"), _resident_id),
    ("national-id", re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), _ssn),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    ("card", re.compile(r"(?<![\d.+-])\d(?:[ -]?\d){12,18}(?![\d-])"), _card),
    ("ip", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\w)"), _public_ip),
    ("ip", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){3,7}(?::|[0-9A-Fa-f]{1,4})(?![\w:])"), _public_ip),
    (
        "phone",
        re.compile(r"(?<![\w.+-])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}(?![\w-])"),
        _phone,
    ),
    ("phone", re.compile(r"(?<![\d.-])1[3-9]\d{9}(?!\d|[.-]\d)"), _phone),  # mainland China, mobile
    ("phone", re.compile(r"(?<![\w.-])\(?[2-9]\d{2}\)?[ .-][2-9]\d{2}[.-]\d{4}(?![\w-])"), _phone),  # North America
)


def masked(text: str, kinds: frozenset[str]) -> Iterator[str]:
    """The text's pieces with each finding of these kinds replaced by its kind: "write to [email]"."""
    at = 0
    for finding in find(text):
        if finding.kind in kinds:
            yield text[at : finding.start]
            yield f"[{finding.kind}]"
            at = finding.end
    yield text[at:]
