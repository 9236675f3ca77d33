"""Personal data is found by what makes it such: form, and checksum where there is one."""

from __future__ import annotations

import pytest

from sheaf.prepare.privacy import KINDS, counts, find, masked

FOUND = {
    "email": ["bob.smith+x@mail.example.co.uk", "a_b@x.io"],
    "phone": ["+49 30 901820", "+1 (415) 555-2671", "13812345678", "(415) 555-2671", "+86 138 1234 5678"],
    "ip": ["8.8.8.8", "2001:4860:4860:0:0:0:0:8888"],
    "card": ["4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432"],
    "national-id": ["11010519491231002X", "123-45-6789"],
    "secret": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    ],
}
NOTHING = [
    "4111 1111 1111 1112",  # the last digit is wrong
    "DE89 3704 0044 0532 0130 01",
    "110105194912310021",
    "10.0.0.1 and 192.168.1.1 and 127.0.0.1",  # of no person
    "version 1.2.3.4.5, pi 3.14159265358979323",
    "000-12-3456",
    "ISBN 978-3-16-148410-0",
    "on 2024-11-23 at 12:30:45",
]


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in FOUND.items() for t in texts])
def test_each_kind_is_found_where_it_is(kind: str, text: str) -> None:
    around = f"before {text} after"
    (finding,) = find(around)
    assert finding.kind == kind and around[finding.start : finding.end] == text


@pytest.mark.parametrize("text", NOTHING)
def test_what_only_looks_alike_is_left(text: str) -> None:
    assert find(text) == []


def test_masking_replaces_the_finding_and_nothing_else() -> None:
    text = "write to bob@x.org, or call 13812345678."
    assert "".join(masked(text, frozenset(KINDS))) == "write to [email], or call [phone]."
    assert "".join(masked(text, frozenset({"phone"}))) == "write to bob@x.org, or call [phone]."
    assert counts(text) == {"email": 1, "phone": 1}
