"""What personal data and secrets look like, kind by kind: patterns over UTF-8 bytes, and the check that decides.

`\\w` and `\\d` mean ASCII here, so a number or an address between Chinese words ends where its last letter or digit
does. Each rule says what its matches begin with (`leads`) or in what stretch of text they lie (`shape`); `find` looks
for those and tries the pattern there, which finds the same as trying it everywhere. Patterns are linear: nothing in
them can be split in two ways, or it is possessive, or short.

What is not looked for, because text is full of what looks like it: names, postal addresses, phone numbers without a
country's prefix outside China and North America, passwords in prose. Private addresses (10.0.0.1, fe80::1) are left:
they lead to nobody, and manuals are full of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sheaf.privacy.checks import (
    IBAN_LENGTHS,
    always,
    card,
    iban,
    international,
    mixed,
    public_ip4,
    public_ip6,
    resident_id,
    social_security,
)

KINDS = ("email", "phone", "ip", "card", "iban", "national-id", "secret")

# Stretches of text, as `find` marks them: made of the characters that the shape's patterns are made of.
EMAIL, HEX, RESIDENT, SOCIAL, CARD, IP4, PLUS, ZEROS, MOBILE, LANDLINE, AMERICAN, IBAN = (1 << n for n in range(12))


@dataclass(frozen=True, slots=True)
class Rule:
    """kind: of KINDS. Matches begin with one of `leads`, or lie in a stretch of `shape`. holds: decides on what
    matched. A group called `value` is what is found, else all that matched is."""

    kind: str
    pattern: re.Pattern[bytes]
    holds: Callable[[bytes], bool] = always
    shape: int = 0
    leads: tuple[bytes, ...] = ()


def _secret(leads: str, rest: str, holds: Callable[[bytes], bool] = always, before: str = r"(?<![A-Za-z0-9_])") -> Rule:
    """leads: words; rest: what follows them."""
    either = "|".join(re.escape(lead) for lead in leads.split(" "))
    return Rule(
        "secret", re.compile(f"{before}(?:{either}){rest}".encode()), holds, leads=tuple(leads.encode().split(b" "))
    )


def _no_placeholder(found: bytes) -> bool:
    return len(set(found)) > 2 and found.lower() not in _PLACEHOLDERS


def _person(found: bytes) -> bool:
    """Not `git@github.com` or `logo@2x.png`."""
    local, _, domain = found.partition(b"@")
    return local != b"git" and domain.rpartition(b".")[2].lower() not in _SUFFIXES


_PLACEHOLDERS = frozenset(b"pass passwd password pwd pw secret token key mypassword yourpassword your-password".split())
_SUFFIXES = frozenset(
    b"avif bat bmp c cpp css csv exe gif gz html ico jpeg jpg js json log map md mp3 mp4 pdf php png ps py scss svg "
    b"tar tgz tif tiff ts tsx txt webp woff xml yaml yml zip".split()
)
_END = r"(?![A-Za-z0-9_])"
# Groups are atomic, (?>…), and not possessive, (…)*+: some Pythons (3.11.2) get those wrong, and would miss keys.
_BASE64_LINES = r"(?:(?>(?:\s|\\[nr])*)[A-Za-z0-9+/=]{40,}+)"
_SECRETS = (
    Rule(
        "secret",
        re.compile(
            rb"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----"
            rb"(?:(?>(?:[^-]++|-(?!----))*)-----END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----"
            rb"|(?>" + _BASE64_LINES.encode() + rb"+))"  # its end is cut off
        ),
        leads=(b"-----BEGIN ",),
    ),
    _secret("AKIA ASIA ABIA ACCA", r"[A-Z0-9]{16}" + _END),  # AWS: the id of a key,
    _secret(  # and the key itself, which looks like nothing but for its name
        "secret_access_key SECRET_ACCESS_KEY SecretAccessKey secretAccessKey aws_secret_key AWS_SECRET_KEY",
        r"""["']?\s{0,8}(?:[:=]|=>|:=)\s{0,8}["']?(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])""",
        before="",
    ),
    _secret("ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9]{36,255}" + _END),
    _secret("github_pat_", r"[A-Za-z0-9_]{60,255}"),
    _secret(
        "glpat- gldt- glrt- glptt- glcbt- glsoat- glft- glimt- glagent-", r"[A-Za-z0-9_.-]{20,255}", mixed
    ),  # GitLab
    _secret("xoxa- xoxb- xoxe- xoxp- xoxr- xoxs- xapp-", r"[A-Za-z0-9-]{20,255}"),  # Slack
    _secret("hooks.slack.com/services/", r"(?P<value>T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,})", before=""),
    _secret("sk_live_ sk_test_ rk_live_ rk_test_", r"[A-Za-z0-9]{20,255}"),  # Stripe
    _secret("whsec_", r"[A-Za-z0-9+/]{32,}=*"),
    _secret("sk-", r"[A-Za-z0-9_-]{32,255}", mixed, before=r"(?<![A-Za-z0-9_-])"),  # OpenAI, Anthropic, and who follow
    _secret("AIza", r"[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])"),  # Google
    _secret("GOCSPX-", r"[A-Za-z0-9_-]{28}"),
    _secret("ya29.", r"[A-Za-z0-9_-]{30,}"),
    _secret("hf_ api_org_", r"[A-Za-z0-9]{30,40}" + _END),  # Hugging Face
    _secret("eyJ", r"[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),  # JSON web tokens (RFC 7519)
    _secret("npm_", r"[A-Za-z0-9]{36}" + _END),
    _secret("pypi-", r"AgE[A-Za-z0-9_-]{50,}"),
    _secret("AccountKey= SharedAccessKey=", r"(?P<value>[A-Za-z0-9+/]{43,86}==?)"),  # Azure: storage, service bus
    _secret("sig=", r"(?P<value>[A-Za-z0-9%]{43,63}%3[Dd])"),  # and signatures that give access
    _secret("SG.", r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),  # SendGrid
    _secret("dop_v1_ doo_v1_ dor_v1_", r"[a-f0-9]{64}"),  # DigitalOcean
    _secret("dapi", r"[a-f0-9]{32}(?:-\d)?" + _END),  # Databricks
    _secret("shpat_ shpca_ shppa_ shpss_", r"[a-fA-F0-9]{32}" + _END),  # Shopify
    _secret(  # the password in an address
        "://",
        r"[^\s/?#:@\"'<>]{0,128}:(?P<value>[^\s/?#@\"'<>{}()$*]{3,128})@(?=[A-Za-z0-9\[])",
        _no_placeholder,
        before="",
    ),
)

_LETTER2 = rb"[\xc3-\xd4][\x80-\xbf]"  # Latin with accents, Greek, Cyrillic: not Han, which may stand right before
_LABEL = rb"(?>(?:[A-Za-z0-9-]|" + _LETTER2 + rb"){1,63})\."
_GAP = rb"(?:[ .-]|\xc2\xa0|\xe2\x80[\x90-\x95])"  # also no-break spaces and typographic hyphens
_CARD_GAP = rb"(?:[ -]|\xc2\xa0|\xe2\x80[\x90\x91])"
_NOT_INSIDE = rb"(?<![\w.+])(?<!\w-)"  # of a word, a number, or a name with hyphens
_NOT_GOING_ON = rb"(?!\w|[.-]\d|-\w)"
_APART, _NO_MORE = rb"(?<!\d )", rb"(?! \d)"  # no number of a table's row
_VERSION = rb"(?<![Vv]ersion )(?<![Rr]elease )(?<!\w/)"


def _ibans() -> bytes:
    each = (
        rb"(?:%s)\d\d(?:(?:[ -]|\xc2\xa0)?[A-Z0-9]){%d}" % (countries.replace(" ", "|").encode(), length - 4)
        for length, countries in IBAN_LENGTHS.items()
    )
    return rb"(?<![A-Za-z0-9])(?:" + rb"|".join(each) + rb")(?![A-Za-z0-9])"


def _either(*forms: bytes) -> bytes:
    return rb"|".join(_NOT_INSIDE + form + _NOT_GOING_ON for form in forms)


_E164 = rb"(?:" + _GAP + rb"?(?:\(0\)|\(\d{1,4}\)|\d{1,5}(?!\d)|\d{9,14}(?!\d)|\d{6,8}(?!\d))){1,7}"
_MOBILE = rb"(?:\(?86\)?[ -]?)?1(?:3\d|4[014-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])"

# First comes what is surest: a card is not a phone number, and an id not a card.
RULES: tuple[Rule, ...] = (
    *_SECRETS,
    Rule(
        "email",
        re.compile(
            rb"(?<![A-Za-z0-9_])(?:[A-Za-z0-9_]|" + _LETTER2 + rb")(?>(?:[A-Za-z0-9._%+'-]|" + _LETTER2 + rb"){0,63})@"
            rb"(?:" + _LABEL + rb"){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})(?![A-Za-z0-9])"
        ),
        _person,
        EMAIL,
    ),
    Rule("national-id", re.compile(rb"(?<![\w.])[1-9]\d{5}(?:18|19|20)\d{9}[\dXx](?![\w])"), resident_id, RESIDENT),
    Rule("national-id", re.compile(rb"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), social_security, SOCIAL),
    Rule("iban", re.compile(_ibans()), iban, IBAN),
    Rule(
        "card",
        re.compile(
            rb"(?<![\w.+-])(?:\d{13,19}|" + _APART + rb"(?:"
            rb"\d{4}(?P<a>" + _CARD_GAP + rb")\d{4}(?P=a)\d{4}(?P=a)\d{4}(?:(?P=a)\d{1,3})?"
            rb"|\d{4}(?P<b>" + _CARD_GAP + rb")\d{6}(?P=b)\d{4,5}"
            rb"|\d{6}" + _CARD_GAP + rb"\d{10,13})" + _NO_MORE + rb")" + _NOT_GOING_ON
        ),
        card,
        CARD,
    ),
    Rule(
        "ip",
        re.compile(rb"(?<![\w.-])" + _VERSION + rb"(?:\d{1,3}\.){3}\d{1,3}(?!\w|[.-]\w)"),
        public_ip4,
        IP4,
    ),
    Rule(
        "ip",
        re.compile(
            rb"(?<![\w:.-])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\d?(?:\.\d{1,3}){3})?(?![\w:])",
        ),
        public_ip6,
        HEX,
    ),
    Rule("phone", re.compile(rb"(?<![\w.+-])\+[1-9]\d{0,2}" + _E164 + _NOT_GOING_ON), international, PLUS),
    Rule(
        "phone",
        re.compile(rb"(?<![\w.+-])" + _APART + rb"00[1-9]\d{0,2}(?=" + _GAP + rb")" + _E164 + _NOT_GOING_ON),
        international,
        ZEROS,
    ),
    Rule(  # mainland China, mobile
        "phone",
        re.compile(
            _either(
                _MOBILE + rb"(?:\d{8}|-\d{4}-\d{4})",
                _APART + _MOBILE + rb" \d{4} \d{4}" + _NO_MORE,
            )
        ),
        shape=MOBILE,
    ),
    Rule(  # mainland China, landline with its area's code
        "phone",
        re.compile(
            _either(
                _APART + rb"(?:\(0(?:10|2\d)\) ?|0(?:10|2\d)[ -])[2-8]\d{3}[ -]?\d{4}(?:-\d{1,5})?",
                _APART + rb"(?:\(0[3-9]\d\d\) ?|0[3-9]\d\d[ -])[2-8]\d{6,7}(?:-\d{1,5})?",
            )
        ),
        shape=LANDLINE,
    ),
    Rule(  # North America
        "phone",
        re.compile(
            _either(
                rb"(?:1[ .-])?(?:\([2-9][0-8]\d\) ?|[2-9][0-8]\d[.-])[2-9]\d{2}[ .-]\d{4}",
                _APART + rb"(?:1 )?[2-9][0-8]\d [2-9]\d{2}[ -]\d{4}" + _NO_MORE,
            )
        ),
        shape=AMERICAN,
    ),
)
