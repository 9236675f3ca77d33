"""Which URLs a folder listing or a sitemap leads to: `follow: index` and `follow: sitemap`.

A listing is a page whose links below the page's own folder are its entries, as Apache, nginx, Python and others write
it; a link that ends in a slash is a folder, and is followed. Nothing beside or above the recipe's URL is, whatever a
page says, and links with a query (a listing sorted otherwise) are passed over. A sitemap (sitemaps.org 0.9: XML, gzip
or plain text, or an index of sitemaps) may only lead to its own host, as that protocol wants; others are refused.

Pages are read with expressions that cannot run long and XML with expat, which is stopped at a DTD, so no entity is
defined or expanded. robots.txt is not asked: the recipe's author names the place, as with a browser, and 8 connections
at most read it. Cost: a round trip a folder, 8 at once; memory for the URLs.
"""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote
from xml.parsers import expat

import httpx

from sheaf.sources.address import origin_of
from sheaf.sources.connections import Connections
from sheaf.sources.fetch import BadAnswer
from sheaf.sources.globs import Selection

MAX_PAGE_BYTES = 64 << 20  # the sitemap protocol allows 50 MB, unpacked
MAX_DEPTH = 32
MAX_FOLDERS = 20_000
MAX_LINKS = 2_000_000
MAX_URL = 2048  # characters; the sitemap protocol's bound
ANCHOR = re.compile(rb"<a\s([^<>]{1,8192})>", re.I)
HREF = re.compile(rb"""(?:^|\s)href\s{0,8}=\s{0,8}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I)


@dataclass(frozen=True, slots=True)
class Page:
    """What a URL gave. url: where the redirects ended."""

    url: str
    data: bytes


@dataclass(slots=True)
class Links:
    """path → URL of the items, and (path, URL, reason, detail) of what will not be read."""

    urls: dict[str, str] = field(default_factory=dict[str, str])
    refused: list[tuple[str, str, str, str]] = field(default_factory=list[tuple[str, str, str, str]])

    def add(self, path: str, url: str) -> None:
        if self.urls.setdefault(path, url) != url:
            self.urls[url] = url
        if len(self.urls) > MAX_LINKS:
            raise BadAnswer("http-endless", f"more than {MAX_LINKS:,} links")

    def refuse(self, path: str, url: str, reason: str, detail: str) -> None:
        self.refused.append((path, url, reason, detail))


Get = Callable[[str], Page]  # raises BadAnswer
Todo = tuple[str, str]  # path of a folder or sitemap, URL


def follow_index(get: Get, starts: dict[str, str], select: Selection, pool: Connections) -> Links:
    """starts: prefix of the paths → URL of the listing. Raises BadAnswer for a start that cannot be had."""
    links = Links()
    for prefix, start in starts.items():
        page = get(start)
        base = httpx.URL(page.url).copy_with(query=None, fragment=None)
        base = base.copy_with(path=base.path.rpartition("/")[0] + "/")
        _walk(get, base, prefix, page, select, pool, links)
    return links


def follow_sitemap(get: Get, starts: dict[str, str], select: Selection, pool: Connections) -> Links:
    """starts: any name → URL of the sitemap. Raises BadAnswer for a start that cannot be had."""
    links, seen = Links(), set(starts.values())
    for start in starts.values():
        todo = _enter_sitemap(get(start), httpx.URL(start), seen, select, links)
        for _ in range(MAX_DEPTH):
            found = [_enter_sitemap(p, httpx.URL(start), seen, select, links) for p in _pages(get, todo, pool, links)]
            todo = [x for more in found for x in more]
        for path, url in todo:
            links.refuse(path, url, "http-endless", "indexes of indexes of sitemaps")
    return links


def _walk(
    get: Get, base: httpx.URL, prefix: str, page: Page, select: Selection, pool: Connections, links: Links
) -> None:
    seen: set[str] = {str(base)}
    todo = _enter_folder(page, base, prefix, seen, select, links)
    for _ in range(MAX_DEPTH):
        room = max(0, MAX_FOLDERS - len(seen) + len(todo))
        for path, url in todo[room:]:
            links.refuse(path, url, "http-endless", f"more than {MAX_FOLDERS:,} folders")
        pages = _pages(get, todo[:room], pool, links)
        todo = [x for p in pages for x in _enter_folder(p, base, prefix, seen, select, links)]
    for path, url in todo:
        links.refuse(path, url, "http-endless", f"more than {MAX_DEPTH} folders deep")


def _pages(get: Get, todo: Sequence[Todo], pool: Connections, links: Links) -> Iterator[Page]:
    """The pages in order; those that cannot be had are refused alone."""

    def attempt(url: str) -> Page | BadAnswer:
        try:
            return get(url)
        except BadAnswer as error:
            return error

    for (path, url), page in zip(todo, pool.map(attempt, [url for _, url in todo]), strict=True):
        if isinstance(page, Page):
            yield page
        else:
            links.refuse(path, url, page.reason, str(page))


def _enter_folder(
    page: Page, base: httpx.URL, prefix: str, seen: set[str], select: Selection, links: Links
) -> list[Todo]:
    """Take up the entries of one listing; the folders to look at next."""
    folders: list[Todo] = []
    for url in _anchors(page):
        path = _below(url, base)
        if not path or str(url) in seen:
            continue
        seen.add(str(url))
        path = prefix + path
        if path.endswith("/"):
            if not select.prunes(unquote(path).rstrip("/")):
                folders.append((path, str(url)))
        elif select.wants(unquote(path)):
            links.add(path, str(url))
    return folders


def _anchors(page: Page) -> Iterator[httpx.URL]:
    here = httpx.URL(page.url)
    for anchor in ANCHOR.finditer(page.data):
        if (match := HREF.search(anchor[1])) is None:
            continue
        reference = html.unescape((match[1] or match[2] or match[3] or b"").decode("utf-8", "replace"))
        try:
            url = here.join(reference.strip())
        except (httpx.InvalidURL, ValueError):
            continue
        if len(reference) <= MAX_URL and not url.query:
            yield url.copy_with(fragment=None)


def _below(url: httpx.URL, base: httpx.URL) -> str:
    """The path from the base on, as it stands in the URL; "" if the URL is not below it."""
    if url.scheme != base.scheme or origin_of(url) != origin_of(base):
        return ""
    path, root = url.raw_path.decode("ascii"), base.raw_path.decode("ascii")
    dots = any(part in (".", "..") for part in unquote(path).replace("\\", "/").split("/"))
    return path[len(root) :] if path.startswith(root) and not dots and "//" not in path else ""


def _enter_sitemap(page: Page, start: httpx.URL, seen: set[str], select: Selection, links: Links) -> list[Todo]:
    """Take up the URLs of one sitemap; the sitemaps to look at next."""
    home = {origin_of(start), (start.host.lower(), 443)}
    more: list[Todo] = []
    try:
        is_index, locations = read_sitemap(page.data)
    except BadAnswer as error:
        if page.url == str(start):
            raise
        links.refuse(_path_of(httpx.URL(page.url)), page.url, error.reason, str(error))
        return []
    for location in locations:
        try:
            url = httpx.URL(page.url).join(location)
        except (httpx.InvalidURL, ValueError):
            links.refuse(location[:200], location[:200], "http-elsewhere", "this is no URL")
            continue
        path = _path_of(url)
        if str(url) in seen or not (is_index or select.wants(unquote(path))):
            continue
        seen.add(str(url))
        if origin_of(url) not in home or url.scheme not in ("http", "https"):
            links.refuse(location, location, "http-elsewhere", f"the sitemap is at {start.host}")
        elif is_index:
            more.append((path, str(url)))
        else:
            links.add(path, str(url))
    return more


def _path_of(url: httpx.URL) -> str:
    return url.raw_path.decode("ascii").lstrip("/") or "index"


def read_sitemap(data: bytes) -> tuple[bool, list[str]]:
    """Whether it is an index of sitemaps, and the locations in it. Raises BadAnswer("http-sitemap")."""
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(data)
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"<"):
        lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
        if all(line.startswith(("http://", "https://")) for line in lines if line):
            return False, [line for line in lines if line]
        raise BadAnswer("http-sitemap", "neither XML nor a list of URLs")
    reader = _SitemapReader()
    try:
        reader.parser.Parse(text, True)
    except expat.ExpatError as error:
        raise BadAnswer("http-sitemap", f"not XML: {error}") from error
    if reader.root not in ("urlset", "sitemapindex"):
        raise BadAnswer("http-sitemap", f"its root is <{reader.root[:60]}>")
    return reader.root == "sitemapindex", reader.locations


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(data, MAX_PAGE_BYTES)
    except zlib.error as error:
        raise BadAnswer("http-sitemap", f"its gzip is damaged: {error}") from error
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise BadAnswer("http-sitemap", f"its gzip is cut off, or holds more than {MAX_PAGE_BYTES:,} bytes")
    return found


class _SitemapReader:
    """Collects <loc> of <url> or <sitemap>, whatever namespace prefix they have."""

    def __init__(self) -> None:
        self.root = ""
        self.locations: list[str] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def _doctype(self, *_: object) -> None:
        raise BadAnswer("http-sitemap", "it has a DTD")

    def _start(self, name: str, _: object) -> None:
        name = name.rpartition(":")[2]
        self.root = self.root or name
        self._path.append(name)
        self._text.clear()
        if len(self._path) > MAX_DEPTH:
            raise BadAnswer("http-sitemap", f"more than {MAX_DEPTH} elements deep")

    def _end(self, _: str) -> None:
        if self._path.pop() == "loc" and self._path[-1:] in (["url"], ["sitemap"]):
            location = "".join(self._text).strip()
            if location:
                self.locations.append(location[:MAX_URL])
            if len(self.locations) > MAX_LINKS:
                raise BadAnswer("http-endless", f"more than {MAX_LINKS:,} links")
        self._text.clear()

    def _characters(self, text: str) -> None:
        if self._path[-1:] == ["loc"] and len(self._text) < MAX_URL:
            self._text.append(text[:MAX_URL])
