"""What S3's own protocol promises: every key is listed and read as it is, signed as Amazon's own library signs."""

from __future__ import annotations

import datetime
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from sheaf.errors import DataRefused, RecipeError
from sheaf.recipe import Secret, SourceSpec
from sheaf.sources import Item, ItemRefused, open_source, retry
from sheaf.sources.s3 import Access, signature

ODD_KEYS = ["a//b", "/a", "//", "../x", "p/./y", "p/../y", "t/", "x/..", "nul\x01", "del\x7f", ".", "a/b//"]
PLAIN_KEYS = ["a", "a/b", "t", "...", "p/.hidden", "x", "%2F", "a%2F%2Fb", "a b+c&=é漢", "nul%01"]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")


def listed(port: int, uri: str, **options: str) -> dict[str, tuple[Item, bytes]]:
    spec = SourceSpec(name="s", uri=uri, options={"endpoint": f"http://127.0.0.1:{port}", "patience": "0", **options})
    source = open_source(spec)
    items = [item for item in source.list_items() if isinstance(item, Item)]
    found: dict[str, tuple[Item, bytes]] = {}
    for item in items:
        with source.open_item(item) as file:
            found[item.path] = item, file.read()
    assert len(found) == len(items)
    return found


def put(port: int, path: str, data: bytes | None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", path, body=data)
    assert connection.getresponse().status == 200
    connection.close()


def test_keys_that_are_no_paths_are_listed_and_read_beside_the_others(moto: int) -> None:
    put(moto, "/odd-keys", None)
    for key in ODD_KEYS + PLAIN_KEYS:
        put(moto, f"/odd-keys/{quote(key, safe='')}", f"in {key}".encode())
    found = listed(moto, "s3://odd-keys/")
    assert {path: data.decode() for path, (_, data) in found.items()} == {k: f"in {k}" for k in ODD_KEYS + PLAIN_KEYS}
    assert all(item.uri == f"s3://odd-keys/{path}" for path, (item, _) in found.items())
    assert set(listed(moto, "s3://odd-keys/a")) == {"/b", "b", "b//"}
    assert listed(moto, "s3://odd-keys//a")["a"][1] == b"in /a"


@pytest.mark.parametrize("key", ["a", "a//b", "../x y", "é+&=%41~!'()*", "line\nbreak"])
@pytest.mark.parametrize("token", ["", "FwoGZXIvYXdzE//token="])
def test_requests_are_signed_as_amazon_s_own_library_signs_them(key: str, token: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    access = Access("https://s3.eu-central-1.amazonaws.com/b", "eu-central-1", "AKID", "se/cret", token)
    path, query = f"/b/{quote(key, safe='/-_.~')}", "list-type=2&prefix=a%2F%20b"
    ours = signature(access, "s3.eu-central-1.amazonaws.com", path, query, now)
    request = AWSRequest("GET", f"https://s3.eu-central-1.amazonaws.com{path}?{query}")
    request.context["payload_signing_enabled"] = True
    request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
    theirs = S3SigV4Auth(Credentials("AKID", "se/cret", token or None), "s3", "eu-central-1")
    text = theirs.string_to_sign(request, _canonical(theirs, request, ours))
    assert ours["authorization"].endswith(theirs.signature(text, request))


def _canonical(auth: Any, request: AWSRequest, headers: dict[str, str]) -> str:
    for name in headers.keys() - {"authorization"}:
        request.headers[name] = headers[name]
    return auth.canonical_request(request)


@contextmanager
def store(answer: Callable[[Any], tuple[int, bytes, dict[str, str]]]) -> Iterator[int]:
    """A server that answers each GET as it is told."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body, headers = answer(self)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def page(*keys: str, more: str = "", namespace: bool = True) -> bytes:
    about = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if namespace else ""
    entries = "".join(
        f"<Contents><Key>{quote(k)}</Key><Size>{len(k)}</Size><ETag>&quot;e&quot;</ETag></Contents>" for k in keys
    )
    end = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return f"<ListBucketResult{about}><EncodingType>url</EncodingType>{entries}{end}</ListBucketResult>".encode()


@pytest.mark.parametrize("namespace", [True, False])
def test_a_listing_is_followed_to_its_end_whatever_the_names_hold(namespace: bool) -> None:
    pages = {"": page("a\nb", "c\r\x00d", more="t+/=", namespace=namespace), "t+/=": page("~", namespace=namespace)}

    def answer(request: Any) -> tuple[int, bytes, dict[str, str]]:
        parts = urlsplit(request.path)
        if parts.query:
            return 200, pages[parse_qs(parts.query).get("continuation-token", [""])[0]], {}
        return 200, unquote(parts.path.removeprefix("/b/")).encode(), {"ETag": '"e"'}

    with store(answer) as port:
        found = listed(port, "s3://b/")
    assert {path: data for path, (_, data) in found.items()} == {
        name: name.encode() for name in ("a\nb", "c\r\x00d", "~")
    }


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaa">]><ListBucketResult><Contents>&a;</Contents></ListBucketResult>'


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"<ListBucketResult>", BOMB, BOMB.decode().encode("utf-16"), page("a") + b"\0", b"\xff\xfe"],
)
def test_what_is_no_listing_is_refused(body: bytes) -> None:
    with store(lambda request: (200, body, {})) as port, pytest.raises(DataRefused, match="cannot be listed"):
        listed(port, "s3://b/")


def test_a_listing_without_end_on_one_page_is_left() -> None:
    with store(lambda request: (200, b"<x>" + b" " * (40 << 20), {})) as port, pytest.raises(DataRefused) as raised:
        listed(port, "s3://b/")
    assert "TooMuch" in raised.value.why


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed_in_a_listing_or_to_an_odd_key(status: int) -> None:
    asked: list[str] = []

    def trap(request: Any) -> tuple[int, bytes, dict[str, str]]:
        asked.append(request.path)
        return 200, page("stolen"), {"ETag": '"e"'}

    with store(trap) as elsewhere:
        target = {"Location": f"http://127.0.0.1:{elsewhere}/latest/meta-data/"}
        with store(lambda request: (status, b"", target)) as port:
            with pytest.raises(RecipeError, match="another region"):
                listed(port, "s3://b/")
            source = open_source(SourceSpec(name="s", uri="s3://b/", options={"endpoint": f"http://127.0.0.1:{port}"}))
            with pytest.raises(ItemRefused) as raised:
                source.open_item(Item("s", "a//b", "s3://b/a//b", 'etag:"e"', 4))
    assert raised.value.reason == f"http-{status}" and asked == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_body_that_breaks_off_is_taken_up_or_begun_anew_as_the_store_can(
    ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.01)
    data, asked = bytes(range(250)) * 400, list[str | None]()

    def answer(request: Any) -> tuple[int, bytes, dict[str, str]]:
        asked.append(request.headers.get("range"))
        start = int((asked[-1] or "bytes=0-")[6:-1]) if ranges else 0
        length = {"Content-Length": str(len(data) - start)}
        if start:
            length["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:] if len(asked) > 2 else data[start : start + 30_000]
        request.close_connection = True
        return 206 if start else 200, body, {"ETag": '"e"', **length}

    with store(answer) as port:
        source = open_source(SourceSpec(name="s", uri="s3://b/", options={"endpoint": f"http://127.0.0.1:{port}"}))
        with source.open_item(Item("s", "a//b", "s3://b/a//b", 'etag:"e"', len(data))) as file:
            assert file.read() == data
    assert len(asked) == 3 and asked[0] is None and asked[1] == "bytes=30000-"


def test_an_object_is_read_by_who_knows_its_version_and_not_its_size(moto: int) -> None:
    """As `trace` does."""
    put(moto, "/re-read", None)
    for key in ("plain", "odd//key"):
        put(moto, f"/re-read/{quote(key)}", key.encode())
        item, _ = listed(moto, "s3://re-read/")[key]
        options: dict[str, Secret | str] = {"endpoint": f"http://127.0.0.1:{moto}"}
        source = open_source(SourceSpec(name="s", uri="s3://re-read/", options=options))
        with source.open_item(replace(item, size=-1)) as file:
            assert file.read() == key.encode()


@pytest.mark.parametrize(
    ("config", "base"),
    [
        ({}, "https://s3.us-east-1.amazonaws.com/b.c"),
        ({"region": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com/b.c"),
        ({"aws_default_region": "x", "virtual_hosted_style_request": "true"}, "https://b.c.s3.x.amazonaws.com"),
        ({"endpoint_url": "http://h:9/"}, "http://h:9/b.c"),
        ({"aws_endpoint": "https://b.c.h", "aws_virtual_hosted_style_request": "true"}, "https://b.c.h"),
    ],
)
def test_the_bucket_is_where_the_settings_say(config: dict[str, str], base: str) -> None:
    access = Access.of("b.c", config)
    assert access is not None and access.base == base and "canary" not in repr(access)


def test_what_only_the_library_can_do_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Access.of("b", {"s3_express": "true"}) is None and Access.of("b", {"regoin": "x"}) is None
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert Access.of("b", {"region": "x"}) is None
    anonymous = Access.of("b", {"skip_signature": "true"})
    assert anonymous is not None and signature(anonymous, "h", "/", "", datetime.datetime.now(datetime.UTC)) == {}
