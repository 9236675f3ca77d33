"""Checksums and tables that decide whether digits are what they look like.

Payment cards: Luhn (ISO/IEC 7812-1, annex B) and the issuers' ranges with their lengths. IBANs: mod 97 (ISO 13616) and
each country's length (SWIFT's registry). Chinese resident ids: GB 11643-1999. US social security numbers have no
checksum, but numbers that are never given. Phone numbers: country codes that are assigned (ITU-T E.164). All take the
matched bytes, and cost some microseconds.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import date

_NO_DIGIT = re.compile(rb"\D+")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ONE_DECIMAL = re.compile(rb"\+\d+\.\d+")

_NOBODYS = frozenset((b"0", b"10", b"127"))  # first numbers of most of those that are not routed: a quick answer

# Country codes of two digits; those of one are 1 and 7, those of three begin with one of _CODES_3.
_CODES_2 = frozenset(
    b"20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 "
    b"90 91 92 93 94 95 98".split()
)
_CODES_3 = frozenset(b"21 22 23 24 25 26 29 35 37 38 42 50 59 67 68 69 80 85 87 88 96 97 99".split())

# First digits of a card: (from, to, lengths). Cards of 19 digits are UnionPay's and Maestro's only, in practice.
_ISSUERS = (
    (4, 4, (13, 16)),  # Visa
    (51, 55, (16,)),  # Mastercard
    (2221, 2720, (16,)),
    (34, 34, (15,)),  # American Express
    (37, 37, (15,)),
    (300, 305, (14,)),  # Diners Club
    (36, 36, (14,)),
    (38, 39, (14,)),
    (6011, 6011, (16,)),  # Discover
    (644, 659, (16,)),
    (3528, 3589, (16,)),  # JCB
    (62, 62, (16, 17, 18, 19)),  # UnionPay
    (50, 50, (16, 18, 19)),  # Maestro
    (56, 58, (16, 18, 19)),
    (67, 67, (16, 18, 19)),
    (2200, 2204, (16,)),  # Mir
)

IBAN_LENGTHS: dict[int, str] = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}


def card(found: bytes) -> bool:
    digits = _NO_DIGIT.sub(b"", found)
    issued = any(
        low <= int(digits[: len(str(low))]) <= high and len(digits) in lengths for low, high, lengths in _ISSUERS
    )
    return issued and len(set(digits)) > 1 and luhn(digits)


def luhn(digits: bytes) -> bool:
    doubled = ((d - 48) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


def iban(found: bytes) -> bool:
    """The first four characters last, letters as 10 to 35, and the rest of a division by 97 is 1."""
    plain = re.sub(rb"[^0-9A-Z]+", b"", found).decode()
    number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
    return int(number) % 97 == 1


def resident_id(found: bytes) -> bool:
    """Weights 2^(17-i) mod 11; the date inside must be one."""
    rest = sum((d - 48) * w for d, w in zip(found[:17], _WEIGHTS, strict=True)) % 11
    if b"10X98765432"[rest] != found.upper()[17]:
        return False
    try:
        date(int(found[6:10]), int(found[10:12]), int(found[12:14]))
    except ValueError:
        return False
    return True


def social_security(found: bytes) -> bool:
    area, group, serial = found[:3], found[4:6], found[7:]
    return area not in (b"000", b"666") and area < b"900" and group != b"00" and serial != b"0000"


def public_ip4(found: bytes) -> bool:
    """One that the internet routes. Of less than seven digits it is a version or a section: of all addresses, not one
    in 500 is so short."""
    return len(found) > 9 and found[: found.index(b".")] not in _NOBODYS and _routed(found)


def public_ip6(found: bytes) -> bool:
    """Of 2000::/3, which is all that is given out; so `abc::def` of a program is none, nor is a network's name."""
    return found[:1] in (b"2", b"3") and found.find(b":") == 4 and found[-1:] != b":" and _routed(found)


def _routed(found: bytes) -> bool:
    try:
        address = ipaddress.ip_address(found.decode())
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def international(found: bytes) -> bool:
    """`found` begins with + or 00. Numbers like +12.3456789 are no phone's."""
    written = found.replace(b"(0)", b"")
    digits = _NO_DIGIT.sub(b"", written).removeprefix(b"00" if found[:1] == b"0" else b"")
    known = digits[:1] in (b"1", b"7") or digits[:2] in _CODES_2 or digits[:2] in _CODES_3
    bare = found[1:].isdigit()
    return known and (10 if bare else 8) <= len(digits) <= 15 and not _ONE_DECIMAL.fullmatch(found)


def mixed(found: bytes) -> bool:
    """Made by chance, not by a writer: digits, capitals and small letters."""
    return (
        sum(48 <= b < 58 for b in found) > 1
        and any(65 <= b < 91 for b in found)
        and any(97 <= b < 123 for b in found)
        and len(set(found)) > 9
    )


def always(_: bytes) -> bool:
    return True
