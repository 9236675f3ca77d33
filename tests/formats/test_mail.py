"""Mail as it really is: folders of messages, lies about charsets, messages in messages, broken ones among good ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

Read = Callable[..., Any]


def plain(subject: str, text: str = "Some words.", **more: str) -> bytes:
    head = {
        "From": "a@example.com",
        "To": "b@example.com",
        "Subject": subject,
        "Date": "Mon, 23 Nov 2026 10:00:00 +0000",
    }
    fields = "".join(f"{name}: {value}\n" for name, value in (head | more).items())
    return f"{fields}\n{text}\n".encode()


def boxed(*messages: bytes) -> bytes:
    return b"".join(b"From a@example.com Mon Nov 23 10:00:00 2026\n" + message + b"\n" for message in messages)


@pytest.mark.parametrize("name", ["cur/1700000000.M20046P2137.mail:2,S", "new/1700000000.0.host", "cur/17.host:2,"])
def test_a_message_of_a_maildir_is_known_without_a_suffix(read: Read, name: str) -> None:
    outcome = read(name, plain("Hello"))
    assert (outcome.texts, outcome.item["media"]) == (["Hello\n\nSome words."], "message/rfc822")


@pytest.mark.parametrize("first", ["From a@example.com\n", ">From a@example.com Mon Nov 23 10:00:00 2026\n"])
def test_the_line_that_mailboxes_put_before_a_message_is_no_text(read: Read, first: str) -> None:
    assert read("a.eml", first.encode() + plain("Hello")).texts == ["Hello\n\nSome words."]


@pytest.mark.parametrize("lost", range(1, 5))
def test_base64_that_is_cut_off_anywhere_is_decoded_as_far_as_it_goes(read: Read, lost: int) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", "Hello"
    message.set_content("Größere Wörter und noch mehr davon", cte="base64")
    (text,) = read("a.eml", message.as_bytes().rstrip()[:-lost]).texts
    assert text.startswith("Hello\n\nGrößere Wörter und noch mehr")


def test_headers_may_be_utf8_or_what_nobody_declared(read: Read) -> None:
    russian = "Привет из далёкого города, как твои дела сегодня"
    for encoding in ("utf-8", "cp1251"):
        raw = plain("SUBJECT").replace(b"SUBJECT", russian.encode(encoding))
        assert json.loads(read("a.eml", raw).records[0]["meta"])["subject"] == russian


def test_blanks_before_a_colon_do_not_end_the_header(read: Read) -> None:
    raw = plain("Hello").replace(b"From:", b"From  :").replace(b"Subject:", b"Subject\t:")
    (record,) = read("a.eml", raw).records
    assert record["text"] == "Hello\n\nSome words."
    assert json.loads(record["meta"])["from"] == "a@example.com"


@pytest.mark.parametrize("charset", ["us-ascii", "utf-8", "no-such-charset", "utf-16", "idna", '"'])
def test_a_charset_that_lies_is_overruled(read: Read, charset: str) -> None:
    text = "Ein Mädchen grüßt die Bäcker: schöne Grüße aus Köln, überall für alle. " * 3
    raw = plain("Hello", "TEXT", **{"Content-Type": f"text/plain; charset={charset}"})
    raw = raw.replace(b"TEXT", text.encode("cp1252"))
    assert read("a.eml", raw).texts == [f"Hello\n\n{text.strip()}"]


def test_a_message_in_a_message_is_a_file_with_its_own_subject_and_attachments(read: Read) -> None:
    inner = EmailMessage()
    inner["From"], inner["To"], inner["Subject"] = "c@example.com", "d@example.com", "Inner"
    inner.set_content("The forwarded words.")
    inner.add_attachment(b'{"text": "a row"}', maintype="application", subtype="json", filename="rows.json")
    outer = EmailMessage()
    outer["From"], outer["To"], outer["Subject"] = "a@example.com", "b@example.com", "Outer"
    outer.set_content("See below.")
    outer.add_attachment(inner, filename="forwarded.eml")
    outcome = read("a.eml", bytes(outer))
    assert dict(zip(outcome.members, outcome.texts, strict=True)) == {
        "forwarded.eml!/rows.json": "a row",
        "forwarded.eml": "Inner\n\nThe forwarded words.",
        "": "Outer\n\nSee below.",
    }


def test_messages_in_messages_stop_at_the_depth(read: Read) -> None:
    raw = plain("Innermost")
    for level in range(20):
        raw = plain(f"Level {level}", "", **{"Content-Type": "message/rfc822"}).rstrip() + b"\n\n" + raw
    assert "bomb" in read("a.eml", raw).reasons


def test_a_broken_message_in_an_mbox_costs_itself(read: Read) -> None:
    nested = b"".join(
        b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (level, level) for level in range(3000)
    )
    broken = plain("Broken").rstrip().replace(b"\n\nSome words.", b"\n") + nested
    data = boxed(plain("One"), broken, plain("Two"), b"\x00\xff\xfe no header at all\n", plain("Three"))
    outcome = read("a.mbox", data)
    kept = [text.split("\n")[0] for text in outcome.texts]
    assert [subject for subject in kept if subject in ("One", "Two", "Three")] == ["One", "Two", "Three"]
    start, end = json.loads(outcome.regions[0]["locator"])["bytes"]
    assert data[start:end].startswith(b"From ") and b"Broken" in data[start:end]


def test_huge_headers_are_cut_and_the_body_is_read(read: Read) -> None:
    raw = plain("=?utf-8?q?a?= " * 200_000, **{"X-Long": "x" * 3_000_000})
    (record,) = read("a.eml", raw).records
    assert record["text"].endswith("Some words.") and len(record["text"]) < 70_000


def test_names_of_attachments_that_cannot_be_decoded_do_not_cost_them(read: Read) -> None:
    raw = (
        plain("Hello", **{"Content-Type": "multipart/mixed; boundary=x"}).rstrip()
        + b"\n--x\nContent-Type: text/plain\n\nBody.\n--x\nContent-Type: text/plain\n"
        + b"Content-Disposition: attachment; filename*=bogus'en'%FF%FE.txt\n\nAttached words.\n--x--\n"
    )
    assert read("a.eml", raw).texts == ["Attached words.", "Hello\n\nBody."]


def test_mails_of_the_mail_gem_are_read(read: Read, testdata: Path) -> None:
    folder = testdata / "mail" / "spec" / "fixtures" / "emails"
    found = {path: read(path.name, path.read_bytes()) for path in sorted(folder.rglob("*.eml"))}
    assert {path.name for path, outcome in found.items() if not outcome.texts} == set()
    media = {path.name: outcome.item["media"] for path, outcome in found.items()}
    assert {name for name, kind in media.items() if kind not in ("message/rfc822", "application/mbox")} == set()
    texts = {path.name: outcome.texts for path, outcome in found.items()}
    assert texts["utf8_headers.eml"] == ["Säying Hello\n\nbody"]
    assert texts["example06.eml"] == ["Re: Saying Hello\n\nThis is a reply to your hello."]
    assert texts["japanese_shift_jis.eml"][0].startswith("test\n\nあいうえお")
