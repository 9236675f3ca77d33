"""Folder listings and sitemaps: what they lead to, and where they may not lead."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from http_server import Server, answer, page, redirect, serving

from sheaf.errors import DataRefused, TryAgain
from sheaf.recipe import SourceSpec
from sheaf.sources import Item, Refusal, open_source
from sheaf.sources.fetch import BadAnswer
from sheaf.sources.http_index import MAX_DEPTH, read_sitemap

pytestmark = pytest.mark.usefixtures("quick")


def listed(uri: str, follow: str, **spec: Any) -> list[Item | Refusal]:
    return list(
        open_source(SourceSpec.model_validate({"name": "w", "uri": uri, "follow": follow, **spec})).list_items()
    )


def paths(found: list[Item | Refusal]) -> list[str]:
    assert all(isinstance(x, Item) for x in found), found
    return [x.path for x in found]


def listing(*links: str) -> Any:
    body = "<html><body><pre>" + "".join(f'<a href="{link}">{link}</a>\n' for link in links) + "</pre></body></html>"
    return lambda request: answer(request, 200, body.encode(), Content_Type="text/html")


def sitemap(*locations: str, root: str = "urlset", each: str = "url", before: str = "") -> bytes:
    inside = "".join(f"<{each}><loc>{x}</loc><lastmod>2026-01-01</lastmod></{each}>" for x in locations)
    xmlns = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return f'<?xml version="1.0"?>{before}<{root} xmlns="{xmlns}">{inside}</{root}>'.encode()


@pytest.fixture
def python_server(tmp_path: Path) -> Iterator[str]:
    """A real folder behind Python's own server, whose listings are not ours."""
    for name in ("a.txt", "deep/er/b c.txt", "deep/日本.txt", "deep/x&y.txt", "x/skip.tmp", "100%25.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / "secret.txt").write_text("beside")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/data"
        httpd.shutdown()
        thread.join()


def test_a_real_listing_is_walked_and_its_files_are_read_in_another_process_s_source(python_server: str) -> None:
    found = listed(python_server, "index", exclude=["**/*.tmp"])
    names = ["100%2525.txt", "a.txt", "deep/%E6%97%A5%E6%9C%AC.txt", "deep/er/b%20c.txt", "deep/x%26y.txt"]
    assert paths(found) == names
    fresh = open_source(SourceSpec(name="w", uri=python_server, follow="index"))
    texts = [fresh.open_item(item).read().decode() for item in found if isinstance(item, Item)]
    assert texts == ["100%25.txt", "a.txt", "deep/日本.txt", "deep/er/b c.txt", "deep/x&y.txt"]


def test_include_and_exclude_are_of_the_names_as_people_write_them(python_server: str) -> None:
    assert paths(listed(python_server, "index", include=["deep/日*"])) == ["deep/%E6%97%A5%E6%9C%AC.txt"]
    assert paths(listed(python_server, "index", exclude=["deep/**", "x/**"])) == ["100%2525.txt", "a.txt"]


def test_only_what_lies_below_the_uri_is_followed(server: Server) -> None:
    with serving() as other:
        server.routes = {
            "/d/": listing(
                *("?C=N;O=D", "../", "/", "/d/", "/e/out.txt", "../e/out.txt", "..%2fe/out.txt", "%2e%2e/e/out.txt"),
                *(
                    other.url + "d/x.txt",
                    "mailto:a@b.c",
                    "javascript:x()",
                    "ftp://127.0.0.1/d/x",
                    "//127.0.0.2/d/y",
                    "#top",
                ),
                *(
                    "http://[bad/",
                    "ok.txt",
                    "ok.txt#part",
                    f"{server.url}d/abs.txt",
                    "sub/",
                    "sub",
                    "q.txt?x=1",
                ),
            ),
            "/d/sub/": listing("../", "in.txt", "../../e/out.txt"),
            **{f"/d/{name}": page for name in ("ok.txt", "abs.txt", "sub/in.txt", "sub")},
        }
        found = listed(server.url + "d/", "index")
        assert [one.path for one in found] == ["abs.txt", "ok.txt", "sub", "sub/in.txt"]  # and no refusals
        assert not other.count and not any("out" in path or "//" in path for path in server.count)


def test_other_servers_listings_are_understood(server: Server) -> None:
    apache = (
        b'<table><tr><td><img src="/icons/text.gif"></td><td><A HREF="one.txt">one</A></td></tr>'
        b"<tr><td><a class=x href='two.txt'>two</a></td></tr><a title=\"a\" href=three.txt>3</a>"
        b'<a href="amp&amp;.txt">x</a></table>'
    )
    server.routes = {"/": lambda r: answer(r, 200, apache)}
    server.routes |= {f"/{name}": page for name in ("one.txt", "two.txt", "three.txt", "amp&.txt")}
    assert paths(listed(server.url, "index")) == ["amp&.txt", "one.txt", "three.txt", "two.txt"]


def test_listings_without_end_end(server: Server) -> None:
    for depth in range(MAX_DEPTH + 5):
        server.routes["/" + "a/" * depth] = listing("a/", "./", "/", "../", f"{depth}.txt")
        server.routes["/" + "a/" * depth + f"{depth}.txt"] = page
    found = listed(server.url, "index")
    refused = [x for x in found if isinstance(x, Refusal)]
    assert [x.reason for x in refused] == ["http-endless"] and refused[0].path == "a/" * (MAX_DEPTH + 1)
    assert len(found) == MAX_DEPTH + 2


def test_a_folder_that_cannot_be_had_costs_itself_alone_and_one_that_may_come_back_is_try_again(server: Server) -> None:
    server.routes = {"/": listing("a.txt", "gone/", "jump/"), "/a.txt": page}
    server.routes["/jump/"] = redirect("http://169.254.169.254/latest/")
    item, gone, jump = listed(server.url, "index")
    assert isinstance(item, Item)
    assert isinstance(gone, Refusal) and (gone.path, gone.reason) == ("gone/", "http-404")
    assert isinstance(jump, Refusal) and jump.reason == "http-forbidden-address"
    server.routes["/gone/"] = lambda r: answer(r, 500)
    with pytest.raises(TryAgain) as raised:
        listed(server.url, "index")
    assert raised.value.where == server.url + "gone/"


def test_a_listing_that_leads_elsewhere_by_redirect_gives_nothing_from_there(server: Server) -> None:
    server.routes = {"/d/": listing("in/"), "/d/in/": redirect("/e/"), "/e/": listing("out.txt"), "/e/out.txt": page}
    assert listed(server.url + "d/", "index") == []


@pytest.mark.parametrize("follow", ["index", "sitemap"])
def test_a_start_that_cannot_be_had_is_said(server: Server, follow: str) -> None:
    with pytest.raises(DataRefused, match=follow) as raised:
        listed(server.url + "none", follow)
    assert "http-404" in raised.value.why


def test_a_hostile_listing_does_not_take_long(server: Server) -> None:
    for body in (b"<a " * 3_000_000, b"<a href=" * 1_000_000, b'<a x="' + b"y" * 8_000_000, b"<a " + b" " * 8_000_000):
        server.routes = {"/": lambda r, body=body: answer(r, 200, body)}
        assert listed(server.url, "index") == []


def test_several_listings_keep_their_names_in_the_paths(server: Server) -> None:
    server.routes = {"/25/": listing("a.txt"), "/26/": listing("a.txt"), "/25/a.txt": page, "/26/a.txt": page}
    assert paths(listed(server.url, "index", urls=["25/", "26/"])) == ["25/a.txt", "26/a.txt"]


def test_a_sitemap_its_gzip_and_an_index_of_them_lead_to_the_pages(server: Server) -> None:
    url = server.url
    index = sitemap(url + "one.xml", url + "two.xml.gz", url + "index.xml", root="sitemapindex", each="sitemap")
    server.routes = {
        "/index.xml": lambda r: answer(r, 200, index),
        "/one.xml": lambda r: answer(r, 200, sitemap(url + "a.html", url + "b/c.html?x=1&amp;y=2", "/rel.html")),
        "/two.xml.gz": lambda r: answer(r, 200, gzip.compress(sitemap(url + "d.html", url + "a.html"))),
        **{f"/{name}": page for name in ("a.html", "b/c.html?x=1&y=2", "d.html", "rel.html")},
    }
    assert paths(listed(url + "index.xml", "sitemap")) == ["a.html", "b/c.html?x=1&y=2", "d.html", "rel.html"]
    assert server.count["GET /index.xml"] == 1
    assert paths(listed(url + "index.xml", "sitemap", include=["b/**"])) == ["b/c.html?x=1&y=2"]


def test_a_sitemap_of_plain_lines_is_one(server: Server) -> None:
    server.routes = {"/s.txt": lambda r: answer(r, 200, f"\ufeff{server.url}a\r\n\n{server.url}b\n".encode())}
    server.routes |= {"/a": page, "/b": page}
    assert paths(listed(server.url + "s.txt", "sitemap")) == ["a", "b"]


def test_a_sitemap_may_not_lead_to_another_host_or_out_of_http(server: Server) -> None:
    with serving() as other:
        places = [other.url + "x", "http://169.254.169.254/y", "file:///etc/passwd", "http://h:bad/", server.url + "ok"]
        server.routes = {"/s.xml": lambda r: answer(r, 200, sitemap(*places)), "/ok": page}
        found = listed(server.url + "s.xml", "sitemap")
        assert [x.path for x in found if isinstance(x, Item)] == ["ok"]
        refused = [x for x in found if isinstance(x, Refusal)]
        assert {x.reason for x in refused} == {"http-elsewhere"} and {x.path for x in refused} == set(places[:4])
        assert not other.count


def test_a_broken_sitemap_of_an_index_costs_itself_alone(server: Server) -> None:
    index = sitemap(server.url + "bad.xml", server.url + "good.xml", root="sitemapindex", each="sitemap")
    server.routes = {
        "/s.xml": lambda r: answer(r, 200, index),
        "/bad.xml": lambda r: answer(r, 200, b"<urlset><url>"),
        "/good.xml": lambda r: answer(r, 200, sitemap(server.url + "a")),
        "/a": page,
    }
    item, refused = listed(server.url + "s.xml", "sitemap")
    assert isinstance(item, Item) and isinstance(refused, Refusal) and refused.reason == "http-sitemap"


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (sitemap("&b;", before=BOMB), "DTD"),
        (sitemap("&x;", before='<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "DTD"),
        (sitemap("&undefined;"), "not XML"),
        (sitemap("x")[:-5], "not XML"),
        (b"<html><body>no</body></html>", "root is <html>"),
        (b"", "root is <>|not XML|no element|neither"),
        (b"just words", "neither"),
        (b"\x1f\x8b\x08broken", "gzip"),
        (gzip.compress(sitemap("x"))[:-9], "gzip"),
        (gzip.compress(b"http://x/" + bytes(80 << 20), 1), "gzip"),
        (b"<a>" * 100, "deep"),
    ],
)
def test_what_is_no_sitemap_or_has_a_dtd_is_refused(data: bytes, word: str) -> None:
    if data:
        with pytest.raises(BadAnswer, match=word) as raised:
            read_sitemap(data)
        assert raised.value.reason == "http-sitemap"
    else:
        assert read_sitemap(data) == (False, [])
