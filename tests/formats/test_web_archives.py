"""WARC and ARC: answers of servers are members, bytes add up, and what is broken costs itself only."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from sheaf.formats import compressed
from sheaf.formats.compressed import Gzip, Inflater
from sheaf.formats.stream import Budget, Refused, from_bytes
from sheaf.recipe import Limits

Read = Callable[..., Any]
PAGE = b"<html><head><title>Hay</title></head><body><p>%s, and more of it to be a text.</p></body></html>"


def http(body: bytes, *fields: str, media: str = "text/html", status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {media}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def warc(block: bytes, number: int = 1, kind: str = "response", length: int | None = None, **more: str) -> bytes:
    media = "application/http; msgtype=response" if kind == "response" else "text/plain"
    fields = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{number}>",
        "WARC-Target-URI": f"http://example.com/{number}",
        "WARC-Date": "2026-11-23T10:00:00Z",
        "Content-Type": media,
        "Content-Length": str(len(block) if length is None else length),
    } | {name.replace("_", "-"): value for name, value in more.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"WARC/1.1\r\n{head}\r\n".encode() + block + b"\r\n\r\n"


def pages(count: int) -> list[bytes]:
    return [warc(http(PAGE % f"page {i}".encode()), i) for i in range(count)]


def chunked(data: bytes, size: int = 50) -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def first_words(outcome: Any) -> list[str]:
    return [" ".join(text.split(",")[0].split()[-2:]) for text in outcome.texts]


def test_an_answer_is_read_by_its_own_format_and_says_where_it_came_from(read: Read) -> None:
    outcome = read("a.warc", warc(http(PAGE % b"page 1")))
    (record,) = outcome.records
    assert (record["media"], record["member"]) == ("text/html", "urn:uuid:1!/http://example.com/1")
    meta = {"url": "http://example.com/1", "date": "2026-11-23T10:00:00Z", "status": 200, "title": "Hay"}
    assert json.loads(record["meta"]) == meta
    assert outcome.item["media"] == "application/warc"


def test_what_a_container_says_of_one_member_is_not_said_of_the_next(read: Read) -> None:
    data = warc(http(PAGE % b"page 1"), 1, WARC_Truncated="length") + warc(b"text of a resource", 2, "resource")
    first, second = (json.loads(r["meta"]) for r in read("a.warc", data).records)
    assert first["truncated"] == "length"
    assert second == {"url": "http://example.com/2", "date": "2026-11-23T10:00:00Z"}


def test_a_record_is_charged_its_bytes_and_requests_are_structure(read: Read) -> None:
    request = warc(b"GET / HTTP/1.1\r\n\r\n", 9, "request")
    one, two = pages(2)
    outcome = read("a.warc", request + one + request + two)
    assert [r["bytes"] for r in outcome.records] == [len(one) - 4, len(two) - 4]  # two empty lines are structure
    assert outcome.item["structure_bytes"] == 2 * len(request) + 8


def test_answers_without_a_body_and_revisits_are_structure(read: Read) -> None:
    empty = warc(http(b"", status="302 Found")) + warc(http(chunked(b""), "Transfer-Encoding: chunked"), 2)
    outcome = read("a.warc", empty + warc(http(b"gone"), 3, "revisit") + pages(1)[0])
    assert (first_words(outcome), outcome.reasons) == (["page 0"], [])


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data, wbits=-15)),
        ("br", brotli.compress),
        ("zstd", zstandard.ZstdCompressor().compress),
        ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
        ("identity", bytes),
        ("gzip", bytes),  # crawlers decode, and leave the header
        ("br", bytes),
    ],
)
@pytest.mark.parametrize("chunks", [True, False])
def test_encodings_and_chunks_are_undone_where_they_are_there(
    read: Read, name: str, encode: Callable[[bytes], bytes], chunks: bool
) -> None:
    body = encode(PAGE % b"page 7")
    fields = [f"Content-Encoding: {name}"] + ["Transfer-Encoding: chunked"] * chunks
    outcome = read("a.warc", warc(http(chunked(body) if chunks else body, *fields)))
    assert (first_words(outcome), outcome.reasons) == (["page 7"], [])
    plain = read("a.warc", warc(http(body, *fields, "Transfer-Encoding: chunked")))
    assert (first_words(plain), plain.reasons) == (["page 7"], [])  # says chunked, and is not


def test_an_encoding_that_is_not_read_is_named(read: Read) -> None:
    outcome = read("a.warc", warc(http(b"\x1f\x9d..", "Content-Encoding: compress")) + pages(2)[1])
    assert (first_words(outcome), outcome.reasons) == (["page 1"], ["unsupported"])


def test_a_bomb_in_a_content_encoding_stops_at_the_limit(read: Read) -> None:
    for name, body in (("gzip", gzip.compress(bytes(40 << 20))), ("br", brotli.compress(bytes(40 << 20), quality=1))):
        data = pages(1)[0] + warc(http(body, f"Content-Encoding: {name}", media="text/plain"), 2)
        outcome = read("a.warc", data, limits=Limits(expanded_mb=8))
        assert (first_words(outcome), set(outcome.reasons)) == (["page 0"], {"bomb"})


def test_conversions_and_resources_are_read_as_what_they_are(read: Read) -> None:
    data = warc(b'{"text": "as JSON"}', 1, "conversion", Content_Type="application/json") + warc(
        b"as text", 2, "resource"
    )
    outcome = read("a.warc", data)
    assert outcome.texts == ["as JSON", "as text"]
    assert [r["media"] for r in outcome.records] == ["application/json", "text/plain"]


def test_a_length_that_is_too_short_costs_what_lies_behind_it(read: Read) -> None:
    one, two, three = pages(3)
    lied = two.replace(b"Content-Length: ", b"Content-Length: 5\r\nX: ")
    outcome = read("a.warc", one + lied + three)
    assert first_words(outcome)[0] == "page 0" and first_words(outcome)[-1] == "page 2"
    assert "corrupt" in outcome.reasons


def test_a_length_that_is_too_long_costs_the_records_it_covers(read: Read) -> None:
    records = pages(6)
    block = http(PAGE % b"long one")
    records[2] = warc(block, 2, length=len(block) + len(records[3]) // 2)
    outcome = read("a.warc", b"".join(records))
    assert {"page 0", "page 1", "page 4", "page 5"} <= set(first_words(outcome))
    assert "corrupt" in outcome.reasons


def test_a_record_without_a_length_costs_itself(read: Read) -> None:
    one, two, three = pages(3)
    outcome = read("a.warc", one + two.replace(b"Content-Length", b"X-Length") + three)
    assert (first_words(outcome), outcome.reasons) == (["page 0", "page 2"], ["corrupt"])
    assert outcome.regions[0]["bytes"] == len(two.replace(b"Content-Length", b"X-Length"))


def test_every_cut_keeps_the_records_before_it_and_says_so(read: Read) -> None:
    records = pages(3)
    data = b"".join(records)
    for cut in range(len(records[0]) + len(records[1]) + 1, len(data) - 4, 37):
        outcome = read("a.warc", data[:cut])
        assert first_words(outcome)[:2] == ["page 0", "page 1"]
        assert "truncated" in outcome.reasons or "corrupt" in outcome.reasons


def noisy(number: int) -> bytes:
    filling = random.Random(number).randbytes(3000).hex()
    return gzip.compress(warc(http(f"page {number}, {filling}".encode(), media="text/plain"), number), mtime=0)


def test_a_damaged_gzip_record_costs_itself(read: Read) -> None:
    packed = [noisy(i) for i in range(40)]
    damaged = bytearray(packed[20])
    damaged[len(damaged) // 2] ^= 0xFF
    data = b"".join(packed[:20]) + bytes(damaged) + b"".join(packed[21:])
    outcome = read("a.warc.gz", data)
    assert set(first_words(outcome)) >= {f"page {i}" for i in range(40) if i != 20}
    assert "corrupt" in outcome.reasons
    assert sum(r["bytes"] for r in outcome.regions) <= len(damaged)
    detail = next(r["detail"] for r in outcome.regions if r["reason"] == "corrupt")
    assert "expanded bytes" in detail  # where it broke


@pytest.mark.parametrize("whole", [True, False])
def test_a_truncated_gzip_keeps_the_records_that_were_there(read: Read, whole: bool) -> None:
    records = [warc(http(f"page {i}, {random.Random(i).randbytes(3000).hex()}".encode()), i) for i in range(40)]
    data = gzip.compress(b"".join(records)) if whole else b"".join(gzip.compress(record) for record in records)
    outcome = read("a.warc.gz", data[: len(data) * 3 // 4])
    assert [f"page {i}" for i in range(28)] == first_words(outcome)[:28] and "truncated" in outcome.reasons


def test_a_thousand_false_beginnings_behind_a_break_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bytes] = []
    monkeypatch.setattr(compressed, "opens", lambda _, head: bool(tried.append(head)))  # none of them is one
    broken = bytearray(gzip.compress(random.Random(0).randbytes(500)))
    broken[10] |= 6  # a kind of block that does not exist
    inflater = Inflater(from_bytes(bytes(broken) + b"\x1f\x8b\x08" * 5000), Gzip, Budget(1 << 30, 200, 10))
    with pytest.raises(Refused, match="corrupt"):
        inflater.fill(1)
    assert inflater.resume() is None
    assert len(tried) == compressed.PROBES


def arc(body: bytes, url: str = "http://example.com/a b", length: int | None = None) -> bytes:
    head = f"{url} 10.0.0.1 20140216050221 text/html {len(body) if length is None else length}\n"
    return head.encode() + body + b"\n"


VERSION = b"1 0 Here\nURL IP-address Archive-date Content-type Archive-length\n\n"


def test_arc_is_read_like_warc(read: Read) -> None:
    data = arc(VERSION, "filedesc://a.arc") + arc(http(PAGE % b"page 1")) + arc(b"example.com", "dns:example.com")
    outcome = read("a.arc", data + arc(http(PAGE % b"page 2"), "http://example.com/c"))
    assert (first_words(outcome), outcome.reasons) == (["page 1", "page 2"], [])
    meta = json.loads(outcome.records[0]["meta"])
    assert (meta["url"], meta["date"]) == ("http://example.com/a b", "2014-02-16T05:02:21Z")


def test_arc_of_version_2_is_read(read: Read) -> None:
    body = http(PAGE % b"page 2")
    head = f"http://example.com/ 10.0.0.1 20140216050221 text/html 200 abc - 0 a.arc {len(body)}\n".encode()
    outcome = read("a.arc", arc(VERSION, "filedesc://a.arc") + head + body + b"\n")
    assert (first_words(outcome), outcome.reasons) == (["page 2"], [])


def test_an_arc_record_with_a_wrong_length_costs_itself(read: Read) -> None:
    start = arc(VERSION, "filedesc://a.arc")
    bad = arc(http(PAGE % b"page 1"), length=10)
    outcome = read("a.arc", start + bad + arc(http(PAGE % b"page 2")))
    assert first_words(outcome)[-1] == "page 2" and "corrupt" in outcome.reasons


def test_web_archives_of_warcio_are_read(read: Read, testdata: Path) -> None:
    folder = testdata / "warcio" / "test" / "data"
    texts = {path.name: read(path.name.removesuffix(".bad"), path.read_bytes()) for path in sorted(folder.iterdir())}
    example = {name for name, outcome in texts.items() if any("Example Domain" in text for text in outcome.texts)}
    assert example == {
        "example.arc", "example.arc.gz", "example.warc", "example.warc.gz", "example-trunc.warc",
        "example-bad.warc.gz.bad", "example-bad-non-chunked.warc.gz", "example-wrong-chunks.warc.gz",
        "example-resource.warc.gz", "example-wget-bad-target-uri.warc.gz", "example-space-in-url.arc",
    }  # fmt: skip
    assert "The global co" in texts["example-iana.org-chunked.warc"].texts[0]
    assert len(texts["post-test.warc.gz"].texts) == 3
    assert texts["example-space-in-target-uri.warc.gz"].records[0]["kind"] == "image"
    assert texts["bad.arc"].texts == [] and "corrupt" in texts["bad.arc"].reasons
