"""HTTP over bad connections and real TLS: cut bodies, stalls, throttling, certificates, names that change."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from http_server import BODY, Server, answer, in_turn, page, redirect, serving

from sheaf.recipe import SourceSpec
from sheaf.sources import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal, fetch, open_source, retry

pytestmark = pytest.mark.usefixtures("quick")
DATA = os.urandom(3_000_000)


def source(uri: str, **spec: Any) -> Any:
    return open_source(SourceSpec.model_validate({"name": "w", "uri": uri, **spec}))


def only(found: Any) -> Item:
    [item] = found.list_items()
    assert isinstance(item, Item)
    return item


class Ranged:
    """Serves DATA with ranges, cutting each body after `cut` bytes; remembers what was asked."""

    def __init__(self, cut: int = 1 << 62, **headers: str) -> None:
        self.cut, self.headers = cut, {"ETag": '"v1"', "Accept_Ranges": "bytes", **headers}
        self.asked: list[tuple[str, str]] = []
        self.data = DATA

    def __call__(self, request: Any) -> None:
        part, condition = request.headers.get("range", ""), request.headers.get("if-range", "")
        if request.command == "GET":
            self.asked.append((part, condition))
        validators = (self.headers.get("ETag"), self.headers.get("Last_Modified"))
        start = int(part.removeprefix("bytes=").split("-")[0]) if part and condition in ("", *validators) else None
        body = self.data[start or 0 :]
        headers = dict(self.headers)
        if start is not None:
            headers["Content_Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        answer(request, 206 if start is not None else 200, body[: self.cut], length=len(body), **headers)


@pytest.mark.parametrize(
    ("headers", "validator"),
    [({}, '"v1"'), ({"ETag": "", "Last_Modified": "Mon, 23 Nov 2026 00:00:00 GMT"}, "Mon, 23 Nov 2026 00:00:00 GMT")],
)
def test_a_body_that_breaks_off_is_taken_up_where_it_broke(
    server: Server, headers: dict[str, str], validator: str
) -> None:
    route = server.routes["/x"] = Ranged(cut=250_000, **headers)
    found = source(server.url + "x")
    with found.open_item(only(found)) as file:
        assert file.read() == DATA
    assert len(route.asked) == 12  # 3,000,000 / 250,000: nothing was sent twice, and more tries than failures may have
    assert route.asked[0] == ("", "") and route.asked[1:] == [
        (f"bytes={n * 250_000}-", validator) for n in range(1, 12)
    ]


def test_a_body_that_breaks_off_and_has_changed_since_is_not_mixed(server: Server) -> None:
    route = server.routes["/x"] = Ranged(cut=1_000_000)
    found = source(server.url + "x")
    item = only(found)

    def changing(request: Any) -> None:
        route(request)
        route.headers["ETag"], route.data = '"v2"', os.urandom(3_000_000)

    server.routes["/x"] = changing
    with pytest.raises(ItemChanged):
        found.open_item(item)


def test_a_weak_version_or_a_server_without_ranges_is_begun_anew(server: Server) -> None:
    server.routes["/weak"] = weak = Ranged(ETag='W/"v1"')
    found = source(server.url + "weak")
    item = only(found)
    weak.cut = 2_000_000
    server.routes["/weak"] = in_turn(weak, lambda r: setattr(weak, "cut", 1 << 62) or weak(r))
    with found.open_item(item) as file:
        assert file.read() == DATA
    assert [part for part, _ in weak.asked] == ["", ""]
    whole = lambda r: answer(r, 200, DATA, ETag='"v1"')  # noqa: E731
    short = lambda r: answer(r, 200, DATA[:2_000_000], length=len(DATA), ETag='"v1"')  # noqa: E731
    server.routes["/x"] = in_turn(whole, short, whole)
    found = source(server.url + "x")
    with found.open_item(only(found)) as file:
        assert file.read() == DATA


def test_a_part_that_is_not_the_one_asked_for_is_not_taken(server: Server) -> None:
    whole = lambda r: answer(r, 200, DATA, ETag='"v1"')  # noqa: E731
    short = lambda r: answer(r, 200, DATA[:2_000_000], length=len(DATA), ETag='"v1"')  # noqa: E731

    def lie(request: Any) -> None:
        content = f"bytes 5-{len(DATA) - 1}/{len(DATA)}"
        answer(request, 206, DATA[:1_000_000], ETag='"v1"', Content_Range=content)

    server.routes["/x"] = in_turn(whole, short, lie, whole)
    found = source(server.url + "x")
    with found.open_item(only(found)) as file:
        assert file.read() == DATA


def test_where_head_is_refused_one_byte_tells_the_version_and_the_size(server: Server) -> None:
    sent: list[int] = []

    def no_head(request: Any) -> None:
        if request.command == "HEAD":
            answer(request, 405)
        elif request.headers.get("range") == "bytes=0-0":
            sent.append(1)
            answer(request, 206, DATA[:1], ETag='"v1"', Content_Range=f"bytes 0-0/{len(DATA)}")
        else:
            sent.append(len(DATA))
            answer(request, 200, DATA, ETag='"v1"')

    server.routes = {f"/{n}": no_head for n in range(20)}
    found = source(server.url, urls=[str(n) for n in range(20)])
    assert [(i.size, i.version) for i in found.list_items()] == [(len(DATA), 'etag:"v1"')] * 20
    assert sum(sent) == 20 and len(server.clients) <= 8  # nothing else was transferred, and connections stayed


def test_an_empty_page_of_a_server_that_knows_ranges_is_an_item(server: Server) -> None:
    def empty(request: Any) -> None:
        if request.command == "HEAD":
            answer(request, 405)
        elif request.headers.get("range"):
            answer(request, 416, Content_Range="bytes */0")
        else:
            answer(request, 200, b"", ETag='"e"')

    server.routes = {"/x": empty}
    found = source(server.url + "x")
    item = only(found)
    assert item.size == 0 and found.open_item(item).read() == b""


def test_a_server_that_stalls_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", httpx.Timeout(0.2))
    over = threading.Event()

    def stall(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.send_header("ETag", '"v1"')
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(b"x" * 10)
            request.wfile.flush()
            over.wait(20)

    server.routes = {"/x": stall}
    found = source(server.url + "x", options={"patience": "0"})
    item = only(found)
    begun = time.monotonic()
    with pytest.raises(ItemUnavailable, match="sent 10"):
        found.open_item(item)
    assert time.monotonic() - begun < 10
    over.set()


def test_a_server_that_drips_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "SLOW_AFTER_SECONDS", 0.1)
    over = threading.Event()

    def drip(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.send_header("ETag", '"v1"')
        request.end_headers()
        if request.command == "GET":
            for _ in range(1000):
                request.wfile.write(b"x")
                if over.wait(0.02):
                    return

    server.routes = {"/x": drip}
    found = source(server.url + "x")
    item = only(found)
    with pytest.raises(ItemUnavailable):
        found.open_item(item)
    over.set()


def test_retry_after_is_kept_in_seconds_and_as_a_date_and_a_long_one_defers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def soon() -> str:  # whole seconds, so at least one is left
        return format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2), usegmt=True)

    for value in (lambda: "1", soon):
        asked: list[float] = []

        def throttle(request: Any, value: Any = value, asked: list[float] = asked) -> None:
            asked.append(time.monotonic())
            answer(request, 429, Retry_After=value()) if len(asked) == 2 else page(request)

        server.routes = {"/x": throttle}
        found = source(server.url + "x")
        with found.open_item(only(found)) as file:
            assert file.read() == BODY
        assert asked[2] - asked[1] >= 0.5
    server.count.clear()
    server.routes = {"/x": in_turn(page, lambda r: answer(r, 503, Retry_After="3600"))}
    found = source(server.url + "x")
    item = only(found)
    begun = time.monotonic()
    with pytest.raises(ItemUnavailable, match="503"):
        found.open_item(item)
    with pytest.raises(ItemUnavailable, match="left alone"):
        found.open_item(item)
    assert time.monotonic() - begun < 5 and server.count["GET /x"] == 1


class Names:
    """A resolver of the test: name → addresses at the first question, at the second, …"""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> None:
        self.asked: list[str] = []
        real = socket.getaddrinfo

        def getaddrinfo(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
            key = str(host).replace(".", "_")
            if key not in names:
                return real(host, port, *args, **kwargs)
            self.asked.append(host)
            addresses = names[key]
            address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    found = trustme.CA()
    found.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return found


@pytest.fixture
def secure(server: Server, authority: trustme.CA) -> Iterator[tuple[Server, list[str | None]]]:
    """An HTTPS server for data.example and localhost; and the names that clients asked for by SNI."""
    names: list[str | None] = []
    with serving() as tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("data.example", "localhost").configure_cert(context)
        context.sni_callback = lambda sock, name, ctx: names.append(name)
        tls.http.socket = context.wrap_socket(tls.http.socket, server_side=True)
        yield tls, names


def test_tls_is_checked_for_the_name_while_the_connection_goes_to_the_checked_address(
    secure: tuple[Server, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tls, names = secure
    Names(monkeypatch, data_example=["127.0.0.1"])
    tls.routes = {"/x": page}
    found = source(f"https://data.example:{tls.port}/x")  # named by the recipe, so its loopback address is allowed
    with found.open_item(only(found)) as file:
        assert file.read() == BODY
    assert set(names) == {"data.example"} and tls.headers["/x"]["host"] == f"data.example:{tls.port}"


@pytest.mark.parametrize("problem", ["another name", "unknown authority", "expired"])
def test_a_bad_certificate_is_final_and_nothing_is_asked_behind_it(
    server: Server, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    Names(monkeypatch, data_example=["127.0.0.1"])
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    signer = trustme.CA() if problem == "unknown authority" else authority
    name = "other.example" if problem == "another name" else "data.example"
    certificate = signer.issue_cert(name, not_after=past) if problem == "expired" else signer.issue_cert(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with serving() as tls:
        tls.http.socket = context.wrap_socket(tls.http.socket, server_side=True)
        tls.routes = {"/x": page}
        [refused] = source(f"https://data.example:{tls.port}/x").list_items()
        assert isinstance(refused, Refusal) and refused.reason == "http-certificate"
        assert not tls.count


def test_a_name_is_resolved_once_and_its_checked_address_is_the_one_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a name that is public when it is checked and private when it is connected to."""
    monkeypatch.setattr("sheaf.sources.address.is_public", lambda address: str(address) == "127.0.0.1")
    names = Names(monkeypatch, first_example=["127.0.0.1", "127.0.0.2"], start_example=["127.0.0.1"])
    with serving() as other:
        other.routes = {"/y": page}
        server.routes = {"/x": redirect(f"http://first.example:{other.port}/y")}
        found = source(f"http://start.example:{server.port}/x")
        with found.open_item(only(found)) as file:  # "127.0.0.1" plays the public address; asked again, it would be .2
            assert file.read() == BODY
        assert names.asked.count("first.example") == 1 and other.headers["/y"]["host"] == f"first.example:{other.port}"


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.0.0.7", "::ffff:127.0.0.1", "fd00:ec2::254"])
def test_a_public_name_with_a_private_address_is_refused_behind_a_redirect(
    server: Server, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    Names(monkeypatch, sly_example=[address])
    server.routes = {"/x": redirect("http://sly.example/latest/meta-data/")}
    [refused] = source(server.url + "x").list_items()
    assert isinstance(refused, Refusal) and refused.reason == "http-forbidden-address"


def test_a_body_longer_than_announced_is_not_read_past_its_end(server: Server) -> None:
    def more(request: Any) -> None:
        answer(request, 200, BODY + b"<script>", length=len(BODY), ETag='"v1"')

    server.routes = {"/x": more}
    found = source(server.url + "x")
    with found.open_item(only(found)) as file:
        assert file.read() == BODY


def test_redirects_that_loop_when_an_item_is_opened_are_refused(server: Server) -> None:
    server.routes = {"/x": in_turn(page, redirect("/x"))}
    found = source(server.url + "x")
    item = only(found)
    with pytest.raises(ItemRefused) as raised:
        found.open_item(item)
    assert raised.value.reason == "http-redirect"
