"""What an HTTP source promises, against real servers on the loopback interface that misbehave."""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from http_server import BODY, Server, answer, in_turn, page, redirect, serving

from sheaf.errors import EnvironmentProblem, RecipeError, TryAgain
from sheaf.formats.sandbox import ItemInput, ParseOptions, Sandbox
from sheaf.recipe import Limits, Secret, SourceSpec
from sheaf.sources import Item, ItemChanged, ItemRefused, ItemUnavailable, Refusal, fetch, open_source, retry
from sheaf.sources.address import is_public
from sheaf.sources.http import HttpSource

pytestmark = pytest.mark.usefixtures("quick")


def source(server: Server, *urls: str, **spec: Any) -> HttpSource:
    found = open_source(SourceSpec(name="web", uri=server.url, urls=urls, **spec))
    assert isinstance(found, HttpSource)
    return found


def only(found: HttpSource) -> Item | Refusal:
    [item] = found.list_items()
    return item


def read(found: HttpSource) -> bytes:
    item = only(found)
    assert isinstance(item, Item)
    with found.open_item(item) as f:
        assert os.fstat(f.fileno()).st_nlink == 0  # unlinked: nothing is left behind
        assert os.fstat(f.fileno()).st_size == len(f.read())
        f.seek(0)
        return f.read()


def test_urls_are_items_sorted_by_path_without_the_server_in_it(server: Server) -> None:
    server.routes = {"/b.html": page, "/a/a.html": page}
    items = list(source(server, "b.html", "a/a.html").list_items())
    assert [i.path for i in items] == ["a/a.html", "b.html"]
    assert items[0].uri == server.url + "a/a.html"
    assert all(isinstance(i, Item) and (i.size, i.media) == (len(BODY), "text/html; charset=utf-8") for i in items)
    assert server.count == {"HEAD /a/a.html": 1, "HEAD /b.html": 1}


def test_without_urls_the_uri_itself_is_the_item(server: Server) -> None:
    server.routes = {"/x/page?q=1": page, "/": page}
    found = HttpSource(SourceSpec(name="web", uri=server.url + "x/page?q=1"))
    assert only(found).path == "x/page?q=1"
    assert read(found) == BODY
    assert only(HttpSource(SourceSpec(name="web", uri=server.url))).path == "index"


def test_the_uri_is_a_folder_even_without_its_slash(server: Server) -> None:
    server.routes = {"/docs/a.html": page}
    found = HttpSource(SourceSpec(name="web", uri=server.url + "docs", urls=("a.html",)))
    assert read(found) == BODY


def test_the_version_changes_with_the_etag_the_date_or_the_bytes(server: Server) -> None:
    def dated(day: int, body: bytes = BODY) -> Callable[[Any], None]:
        return lambda r: answer(r, 200, body, Last_Modified=f"Mon, {day:02d} Nov 2026 00:00:00 GMT")

    def version(route: Callable[[Any], None]) -> str:
        server.routes = {"/x": route}
        item = only(source(server, "x"))
        assert isinstance(item, Item)
        return item.version

    routes = [
        page,
        lambda r: answer(r, 200, BODY, ETag='"v2"'),
        dated(1),
        dated(2),
        dated(1, b"x"),
        lambda r: answer(r, 200, b"one"),
        lambda r: answer(r, 200, b"two"),
    ]
    first, again = [version(r) for r in routes], [version(r) for r in routes]
    assert first == again and len(set(first)) == len(routes)


def test_a_server_that_refuses_head_is_asked_with_get(server: Server) -> None:
    server.routes = {"/x": lambda r: answer(r, 405) if r.command == "HEAD" else page(r)}
    assert read(source(server, "x")) == BODY


def test_an_unknown_length_is_minus_one_and_the_file_tells_it(server: Server) -> None:
    def chunked(request: Any) -> None:
        request.send_response(200)
        request.send_header("ETag", '"c"')
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")

    server.routes = {"/x": chunked}
    item = only(source(server, "x"))
    assert isinstance(item, Item) and item.size == -1
    assert read(source(server, "x")) == b"hello"


def test_bytes_are_taken_as_they_are_sent(server: Server) -> None:
    server.routes = {"/x": lambda r: answer(r, 200, b"\x1f\x8bnot really", ETag='"z"', Content_Encoding="gzip")}
    assert read(source(server, "x")) == b"\x1f\x8bnot really"
    assert server.headers["/x"]["accept-encoding"] == "identity"
    assert server.headers["/x"]["user-agent"].startswith("sheaf/")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_4xx_is_refused_by_its_number(server: Server, status: int) -> None:
    server.routes = {"/x": lambda r: answer(r, status), "/y": page}
    refused, item = source(server, "x", "y").list_items()
    assert isinstance(refused, Refusal) and refused.reason == f"http-{status}"
    assert isinstance(item, Item)
    assert server.count["GET /x"] == 1  # final: not tried again


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_error_is_tried_again(server: Server, status: int) -> None:
    failing = lambda r: answer(r, status)  # noqa: E731
    server.routes = {"/x": in_turn(failing, failing, failing, failing, page)}  # HEAD and GET, twice
    assert isinstance(only(source(server, "x")), Item)


def test_a_server_that_goes_on_failing_is_try_again_naming_the_url(server: Server) -> None:
    server.routes = {"/x": lambda r: answer(r, 500), "/y": page}
    with pytest.raises(TryAgain) as raised:
        list(source(server, "x", "y").list_items())
    assert raised.value.where == server.url + "x" and "500" in raised.value.why
    assert server.count["GET /x"] == retry.TRIES


def test_a_server_that_is_down_is_try_again_naming_the_url() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{s.getsockname()[1]}/x"
        with pytest.raises(TryAgain) as raised:
            list(HttpSource(SourceSpec(name="web", uri=url)).list_items())
    assert raised.value.where == url


def test_a_name_that_does_not_resolve_is_try_again() -> None:
    with pytest.raises(TryAgain, match="does not answer"):
        list(HttpSource(SourceSpec(name="web", uri="http://name.invalid/")).list_items())


def test_a_body_shorter_than_announced_is_fetched_again(server: Server) -> None:
    short = lambda r: answer(r, 200, BODY[:100], length=len(BODY), ETag='"v1"')  # noqa: E731
    server.routes = {"/x": in_turn(page, short, short, page)}
    assert read(source(server, "x")) == BODY
    longer = lambda r: answer(r, 200, BODY[:200], length=len(BODY), ETag='"v1"')  # noqa: E731
    server.routes = {"/x": in_turn(page, short, longer, short)}
    server.count.clear()
    found = source(server, "x")
    item = only(found)
    assert isinstance(item, Item)
    with pytest.raises(ItemUnavailable):
        found.open_item(item)
    assert server.count["GET /x"] == retry.TRIES


def test_a_body_that_is_short_by_the_same_at_every_try_is_refused_for_good(server: Server) -> None:
    server.routes = {"/x": in_turn(page, lambda r: answer(r, 200, BODY[:100], length=len(BODY), ETag='"v1"'))}
    assert refusal_at_opening(server).reason == "http-length"
    assert server.count["GET /x"] == retry.TRIES


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_4xx_after_a_good_head_is_refused_for_good_by_its_number(server: Server, status: int) -> None:
    server.routes = {"/x": in_turn(page, lambda r: answer(r, status))}
    assert refusal_at_opening(server).reason == f"http-{status}"
    assert server.count["GET /x"] == 1


def refusal_at_opening(server: Server) -> ItemRefused:
    found = source(server, "x")
    item = only(found)
    assert isinstance(item, Item)
    with pytest.raises(ItemRefused) as raised:
        found.open_item(item)
    return raised.value


def test_a_server_that_announces_another_length_by_head_is_caught(server: Server) -> None:
    server.routes = {"/x": in_turn(lambda r: answer(r, 200, BODY[:7], ETag='"v1"'), page)}
    refused = refusal_at_opening(server)
    assert refused.reason == "http-length" and "announced 7 bytes and sent" in refused.detail


def test_an_item_that_changed_after_listing_is_not_read(server: Server) -> None:
    server.routes = {
        "/etag": in_turn(page, lambda r: answer(r, 200, BODY, ETag='"v2"')),
        "/bytes": in_turn(*[lambda r: answer(r, 200, b"old")] * 2, lambda r: answer(r, 200, b"new")),
    }
    found = source(server, "etag", "bytes")
    for item in list(found.list_items()):
        assert isinstance(item, Item)
        with pytest.raises(ItemChanged):
            found.open_item(item)


def test_an_item_that_is_too_large_is_refused_when_listed_or_stopped_when_read(server: Server) -> None:
    server.routes = {"/x": page, "/y": in_turn(lambda r: answer(r, 200, b"", length=-1, ETag='"v1"'), page)}
    spec = SourceSpec(name="web", uri=server.url, urls=("x", "y"))
    found = HttpSource(spec, max_bytes=1000)
    refused, item = found.list_items()
    assert isinstance(refused, Refusal) and refused.reason == "too-large"
    assert isinstance(item, Item) and item.size == -1
    with pytest.raises(ItemRefused, match="1,000 bytes") as raised:
        found.open_item(item)
    assert raised.value.reason == "too-large"


def test_redirects_are_followed_at_one_origin(server: Server) -> None:
    server.routes = {"/x": redirect("/y"), "/y": redirect(server.url + "z"), "/z": page}
    assert read(source(server, "x")) == BODY


def test_endless_redirects_end(server: Server) -> None:
    server.routes = {"/x": redirect("/x")}
    refused = only(source(server, "x"))
    assert isinstance(refused, Refusal) and refused.reason == "http-redirect"
    assert server.count["HEAD /x"] == 6


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data", "http://[::1]:1/", "http://0.0.0.0:1/", "http://[::ffff:127.0.0.1]/"],
)
def test_a_redirect_into_a_private_network_is_refused(server: Server, target: str) -> None:
    server.routes = {"/x": redirect(target)}
    refused = only(source(server, "x"))
    assert isinstance(refused, Refusal) and refused.reason == "http-forbidden-address"


def test_a_redirect_to_another_server_on_this_machine_is_refused_unless_the_recipe_names_it(server: Server) -> None:
    with serving() as other:
        server.routes, other.routes = {"/x": redirect(other.url + "y")}, {"/y": page}
        refused = only(source(server, "x"))
        assert isinstance(refused, Refusal) and refused.reason == "http-forbidden-address"
        assert not other.count
        server.routes["/x"] = redirect(f"http://localhost:{server.port}/y")  # by another name
        refused = only(source(server, "x"))
        assert isinstance(refused, Refusal) and refused.reason == "http-forbidden-address"
        server.routes["/x"] = redirect(other.url + "y")
        found = list(source(server, "x", other.url + "y").list_items())
        assert all(isinstance(i, Item) for i in found) and len(found) == 2


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:alert(1)"])
def test_a_redirect_away_from_http_is_refused(server: Server, target: str) -> None:
    server.routes = {"/x": redirect(target)}
    refused = only(source(server, "x"))
    assert isinstance(refused, Refusal) and refused.reason == "http-redirect"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("172.16.0.1", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::808:808", True),
    ],
)
def test_only_addresses_of_the_open_internet_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_secrets_go_to_named_origins_only_and_are_looked_up_when_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as other, ExitStack() as stack:
        stack.callback(monkeypatch.undo)
        server.routes, other.routes = {"/x": page}, {"/y": page}
        spec: dict[str, Any] = {"headers": {"X-Token": Secret(env="SHEAF_TEST_TOKEN"), "X-Plain": "p"}}
        found = source(server, "x", **spec)
        with pytest.raises(EnvironmentProblem, match="not set"):
            list(found.list_items())
        monkeypatch.setenv("SHEAF_TEST_TOKEN", "canary")
        item = only(found)
        assert server.headers["/x"]["x-token"] == "canary" and server.headers["/x"]["x-plain"] == "p"
        assert "canary" not in repr(item) + repr(vars(found))


def test_secrets_are_not_sent_along_with_a_redirect_elsewhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHEAF_TEST_TOKEN", "canary")
    with serving() as other:
        other.routes = {"/y": page}
        server.routes = {"/x": redirect(other.url + "y")}
        # Lift the address guard for the other server alone, to see what would be sent to it.
        found = source(server, "x", headers={"X-Token": Secret(env="SHEAF_TEST_TOKEN")})
        transport = found._fetcher._client._transport
        transport._named = frozenset({("127.0.0.1", server.port), ("127.0.0.1", other.port)})
        assert isinstance(only(found), Item)
        assert server.headers["/x"]["x-token"] == "canary"
        assert "x-token" not in other.headers["/y"]


@pytest.mark.parametrize(
    "value", ["canary\nX: y", "canary\r\n", "cana\x00ry", "canary\x7f", "canary €", "canary\udcff"]
)
def test_a_secret_that_cannot_be_sent_is_refused_without_being_quoted(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    (tmp_path / "token").write_bytes(value.encode("utf-8", "surrogateescape") + b"\n")
    monkeypatch.setattr(os, "environ", {**os.environ, "SHEAF_TEST_TOKEN": value})
    server.routes = {"/x": page}
    for secret, place in (
        (Secret(env="SHEAF_TEST_TOKEN"), "SHEAF_TEST_TOKEN"),
        (Secret(file=str(tmp_path / "token")), "token"),
    ):
        with pytest.raises(EnvironmentProblem) as raised:
            list(source(server, "x", headers={"X-Token": secret}).list_items())
        assert place in raised.value.where
        chain = "".join(traceback.format_exception(raised.value))
        error: BaseException | None = raised.value
        while error is not None:
            chain += repr(error) + repr(vars(error))
            error = error.__cause__ or error.__context__
        assert "canary" not in chain.replace(str(tmp_path), "") and "cana" not in chain.replace(str(tmp_path), "")
    assert not server.count


def test_a_secret_file_may_end_in_a_line_break_and_a_secret_may_hold_latin_1(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes("canary é\r\n".encode())
    server.routes = {"/x": page}
    assert isinstance(only(source(server, "x", headers={"X-Token": Secret(file=str(tmp_path / "token"))})), Item)
    assert server.headers["/x"]["x-token"] == "canary é"


def test_what_the_http_library_says_of_our_request_is_not_repeated(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEAF_TEST_TOKEN", "canary\nX: y")
    monkeypatch.setattr(fetch, "_header", lambda name, value: os.environ[value.env].encode())  # the check is broken
    with pytest.raises(TryAgain) as raised:
        list(source(server, "x", headers={"X-Token": Secret(env="SHEAF_TEST_TOKEN")}).list_items())
    assert "cannot be sent" in raised.value.why and "canary" not in str(raised.value)
    assert "canary" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("headers", [{"X Token": "v"}, {"X-Töken": "v"}, {"X-Token": "a\nb"}, {"X-Token": "€"}])
def test_a_header_that_is_none_is_the_recipe_s_fault(server: Server, headers: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="header"):
        list(source(server, "x", headers=headers).list_items())


@pytest.mark.parametrize("charset", ["KOI8-R", '"koi8-r"', "koi8-r; x=y"])
def test_the_charset_that_the_server_declares_decides_how_the_page_is_read(server: Server, charset: str) -> None:
    text = "Съешь ещё этих мягких французских булок"
    body = f"<html><body><p>{text}</p></body></html>".encode("koi8-r")
    server.routes = {"/x": lambda r: answer(r, 200, body, ETag='"v"', Content_Type=f"Text/HTML ;charset={charset}")}
    found = source(server, "x")
    item = only(found)
    assert isinstance(item, Item) and item.media == "text/html; charset=koi8-r"
    with found.open_item(item) as file, Sandbox(Limits()) as sandbox:
        parsed = sandbox.parse([ItemInput(file, item.path, item.size, item.media)], ParseOptions())
    [record] = parsed.records.to_pylist()
    assert (record["encoding"], record["media"], record["text"]) == ("koi8-r", "text/html", text)


def test_a_password_is_sent_for_the_user_of_the_uri(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHEAF_TEST_TOKEN", "canary")
    server.routes = {"/x": page}
    uri = server.url.replace("//", "//reader@")
    assert isinstance(
        only(HttpSource(SourceSpec(name="w", uri=uri + "x", password=Secret(env="SHEAF_TEST_TOKEN")))), Item
    )
    kind, _, pair = server.headers["/x"]["authorization"].partition(" ")
    assert (kind, base64.b64decode(pair)) == ("Basic", b"reader:canary")


def test_proxy_variables_are_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.routes = {"/x": page}
    assert read(source(server, "x")) == BODY


def test_connections_are_kept_alive_and_order_holds_for_many_urls(server: Server) -> None:
    names = [f"{n:04d}" for n in range(300)]
    server.routes = {f"/{n}": page for n in names}
    assert [i.path for i in source(server, *reversed(names)).list_items()] == names
    assert len(server.clients) <= 8


def test_fetched_items_lie_in_the_spool_folder_and_leave_nothing_there(server: Server, tmp_path: Path) -> None:
    server.routes = {"/x": page}
    found = open_source(SourceSpec(name="web", uri=server.url + "x"), spool=tmp_path)
    [item] = found.list_items()
    assert isinstance(item, Item)
    with found.open_item(item) as f:
        assert os.fstat(f.fileno()).st_dev == tmp_path.stat().st_dev
        assert list(tmp_path.iterdir()) == []
